package backend

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgproxy/wire"
)

// A small model of a PostgreSQL server, and random clients: each reply must go to
// the message that it answers.

// sent is a message as the model sees it.
type sent struct {
	n    int
	typ  byte // as on the wire; '.' for a Forge, of which the server sees nothing
	do   Do
	fate fate
}

type fate uint8

const (
	good    fate = iota
	fails        // with an error: for 'd' when it is read, or later in the COPY
	copies       // Query and Execute: is COPY FROM STDIN
	suspend      // Execute: its portal has more rows
)

// answer is a reply of the model's, and the message that it belongs to.
type answer struct {
	typ byte
	n   int
	own bool // of a swallowed message
}

// modelServer does what PostgreSQL's main loop does.
type modelServer struct {
	rnd      *rand.Rand
	skipping bool
	copying  *sent
	doomed   bool // the COPY has read a bad row and will fail before its end
	out      []answer
	unparsed []int // Parses that failed or were ignored
}

func (s *modelServer) say(m *sent, types ...byte) {
	for _, t := range types {
		s.out = append(s.out, answer{t, m.n, m.do == Swallow && t != wire.ErrorResponse})
	}
}

func (s *modelServer) fail(m *sent) {
	s.say(m, wire.ErrorResponse)
	if m.typ == wire.Query || m.typ == wire.FunctionCall {
		s.say(m, wire.ReadyForQuery)
		return
	}
	s.skipping = true
}

func (s *modelServer) refuse(m *sent) {
	if m.typ == wire.Parse {
		s.unparsed = append(s.unparsed, m.n)
	}
}

func (s *modelServer) read(m *sent) {
	if s.copying != nil {
		s.readCopy(m)
		return
	}
	switch m.typ {
	case wire.CopyData, wire.CopyDone, wire.CopyFail:
		return // left over from a COPY that failed
	case wire.Sync:
		s.skipping = false
		if m.fate == fails {
			s.say(m, wire.ErrorResponse)
		}
		s.say(m, wire.ReadyForQuery)
		return
	}
	if s.skipping {
		s.refuse(m)
		return
	}
	if m.fate == fails {
		s.refuse(m)
		s.fail(m)
		return
	}
	if m.fate == copies {
		s.say(m, wire.CopyInResponse)
		s.copying, s.doomed = m, false
		return
	}
	switch m.typ {
	case wire.Query:
		for range s.rnd.IntN(3) {
			s.say(m, wire.RowDescription, wire.DataRow, wire.CommandComplete)
		}
		s.say(m, wire.ReadyForQuery)
	case wire.FunctionCall:
		s.say(m, wire.FunctionCallResponse, wire.ReadyForQuery)
	case wire.Parse, '.':
		s.say(m, wire.ParseComplete)
	case wire.Bind:
		s.say(m, wire.BindComplete)
	case wire.Describe:
		s.say(m, wire.ParameterDescription, wire.RowDescription)
	case wire.Close:
		s.say(m, wire.CloseComplete)
	case wire.Execute:
		if m.fate == suspend {
			s.say(m, wire.DataRow, wire.PortalSuspended)
			return
		}
		s.say(m, wire.DataRow, wire.CommandComplete)
	}
}

func (s *modelServer) readCopy(m *sent) {
	s.doomed = s.doomed || m.typ == wire.CopyFail || m.fate == fails
	over := m.typ == wire.CopyDone || m.typ == wire.CopyFail
	switch c := s.copying; {
	case s.doomed && (over || s.rnd.IntN(2) == 0):
		s.copying = nil
		s.fail(c)
	case over:
		s.copying = nil
		s.say(c, wire.CommandComplete)
		if c.typ == wire.Query {
			s.say(c, wire.ReadyForQuery)
		}
	}
}

// randomGroup makes what a client sends up to a point where it may wait: a
// Query, a FunctionCall, or a batch with its Sync; with all of a COPY.
func randomGroup(rnd *rand.Rand, syncsInCopy bool) (g []sent) {
	odds := func(n int) bool { return rnd.IntN(n) == 0 }
	add := func(typ byte, f fate) *sent {
		g = append(g, sent{typ: typ, fate: f})
		return &g[len(g)-1]
	}
	bad := func() fate {
		if odds(8) {
			return fails
		}
		return good
	}
	copyData := func() {
		for range rnd.IntN(4) {
			add(wire.CopyData, bad())
			if syncsInCopy && odds(2) {
				add(wire.Sync, good)
			}
		}
		end := wire.CopyDone
		if odds(4) {
			end = wire.CopyFail
		}
		add(end, good)
	}
	switch rnd.IntN(8) {
	case 0:
		add(wire.Query, bad())
	case 1:
		add(wire.FunctionCall, bad())
	case 2:
		add(wire.Query, copies)
		copyData()
	case 3:
		add(wire.Bind, bad())
		add(wire.Execute, copies)
		if syncsInCopy {
			add(wire.Sync, good)
		}
		copyData()
		add(wire.Sync, good)
	default:
		for range rnd.IntN(8) {
			typ := []byte{wire.Parse, wire.Bind, wire.Describe, wire.Execute, wire.Close, wire.Query, '.'}[rnd.IntN(7)]
			m := add(typ, bad())
			switch {
			case typ == '.':
				m.fate = good
			case typ == wire.Execute && odds(3):
				m.fate = suspend
			case typ == wire.Parse && odds(3):
				m.do = Swallow
			}
		}
		add(wire.Sync, bad())
	}
	return g
}

// entry is what the client notes for a message; false if it is not answered.
func entry(m *sent) (Owed, bool) {
	kinds := map[byte]Kind{
		wire.Query: Query, wire.FunctionCall: Function, wire.Sync: Sync, wire.Parse: Parse, wire.Bind: Bind, wire.Describe: Describe,
		wire.Execute: Execute, wire.Close: Close, wire.CopyDone: CopyEnd, wire.CopyFail: CopyEnd, '.': Forge,
	}
	k, ok := kinds[m.typ]
	return Owed{Kind: k, Do: m.do, Made: wire.ParseComplete, Sink: &mark{n: m.n}}, ok
}

func TestQueueAgainstModel(t *testing.T) {
	for seed := range uint64(20_000) {
		if err := compare(rand.New(rand.NewPCG(seed, 1)), false); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := compare(rand.New(rand.NewPCG(seed, 2)), true); err != nil {
			t.Fatalf("seed %d, Syncs in COPY: %v", seed, err)
		}
	}
}

// compare plays one client. Messages and replies are under way for random times,
// so the queue is told of later messages before and after earlier replies.
func compare(rnd *rand.Rand, syncsInCopy bool) error {
	s := &modelServer{rnd: rnd}
	var dropped []int
	q := &queue{dropped: func(o Owed, _ bool) {
		if o.Kind == Parse {
			dropped = append(dropped, o.Sink.(*mark).n)
		}
	}}
	var story, got, want []string
	var inbox []*sent
	doubted, seen, n := false, 0, 0
	forge := func() {
		for o, ok := q.forged(); ok; o, ok = q.forged() {
			got = append(got, fmt.Sprintf("%c%d", o.Made, o.Sink.(*mark).n))
		}
	}
	deliver := func() error {
		a := s.out[seen]
		seen++
		story = append(story, fmt.Sprintf("-%c%d", a.typ, a.n))
		forge()
		v, err := q.reply(a.typ, []byte("I"))
		if err != nil {
			return err
		}
		doubted = doubted || q.doubt > 0
		if !v.Forward {
			return nil
		}
		who := 0
		if v.Sink != nil {
			who = v.Sink.(*mark).n
		}
		if doubted && a.typ == wire.ReadyForQuery {
			who = a.n // which of several Syncs it answers cannot be known, and is all the same
		}
		got = append(got, fmt.Sprintf("%c%d", a.typ, who))
		return nil
	}
	// pump lets the server read and its replies arrive, all or some of them.
	pump := func(all bool) error {
		for all || rnd.IntN(3) > 0 {
			switch {
			case len(inbox) > 0 && (all || rnd.IntN(2) == 0):
				before := len(s.out)
				m := inbox[0]
				inbox = inbox[1:]
				s.read(m)
				for _, a := range s.out[before:] {
					if !a.own {
						want = append(want, fmt.Sprintf("%c%d", a.typ, a.n))
					}
				}
				if m.typ == '.' { // nothing comes over the wire
					s.out = s.out[:before]
				}
			case seen < len(s.out):
				if err := deliver(); err != nil {
					return err
				}
			case len(inbox) == 0:
				return nil
			}
		}
		return nil
	}
	run := func() error {
		for range 1 + rnd.IntN(6) {
			for _, m := range randomGroup(rnd, syncsInCopy) {
				n++
				m.n = n
				story = append(story, fmt.Sprintf("+%c%d", m.typ, n))
				if o, ok := entry(&m); ok {
					q.push(o)
				}
				inbox = append(inbox, &m)
				if err := pump(false); err != nil {
					return err
				}
			}
			if !syncsInCopy {
				continue
			}
			if err := pump(true); err != nil {
				return err
			}
			if q.doubt > 0 && q.empty() {
				n++
				q.push(Owed{Kind: Probe, Do: Swallow, Own: true, Sink: &mark{n: n}})
				probe := &sent{n: n, typ: wire.Query, do: Swallow}
				s.say(probe, wire.EmptyQueryResponse, wire.ReadyForQuery)
			}
		}
		return pump(true)
	}
	err := run()
	forge()
	tell := func(what string) error {
		return fmt.Errorf("%s\nstory %s\ngot   %s\nwant  %s", what, strings.Join(story, " "), strings.Join(got, " "), strings.Join(want, " "))
	}
	switch {
	case err != nil:
		return tell(err.Error())
	case !slices.Equal(got, want):
		return tell("the client hears something else")
	case !slices.Equal(dropped, s.unparsed):
		return tell(fmt.Sprintf("dropped Parses %v, the server has not done %v", dropped, s.unparsed))
	case !q.settled():
		return tell(fmt.Sprintf("not settled: %d owed, skipping %v, doubt %d, copy %v", q.n, q.skipping, q.doubt, q.copyIn))
	}
	return nil
}
