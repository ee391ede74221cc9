package proxy

import (
	"errors"
	"sync"
	"time"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/netio"
	"pgproxy/router"
	"pgproxy/wire"
)

// assembly is what one call of onClient puts together for the server. It is
// borrowed for the call.
type assembly struct {
	owed      []backend.Owed
	out       netio.Gather
	holding   bool // s.lease is kept: something must be sent, if only nothing
	wrote     bool
	ends      bool
	dirty     bool
	pin       backend.Pin
	ask       backend.Ask
	names     []string     // of settings to ask for
	statement *router.Plan // the last one
	explains  bool         // the statement at hand asks to be explained
	parses    int
	binds     int
	trial     backend.Trial
	pace      *router.Pace // of the statement at hand, if it is one that may share a connection where it is quick
	share     bool         // it is
	now       int64        // when the client's bytes came; 0 after something was sent or waited for
	memoText  []byte       // of the last statement looked at, and its plan
	memo      *router.Plan
}

var assemblies = sync.Pool{New: func() any { return new(assembly) }}

func (a *assembly) reset() {
	clear(a.owed)
	a.owed = a.owed[:0]
	if cap(a.owed) > 256 {
		a.owed = nil
	}
	a.out.Reset()
	a.holding, a.wrote, a.ends, a.dirty, a.pin, a.parses, a.binds = false, false, false, false, 0, 0, 0
	a.ask, a.names, a.statement = 0, nil, nil
	a.trial, a.pace, a.share = backend.Trial{}, nil, false
	a.memoText, a.memo, a.now, a.explains = nil, nil, 0, false
}

// plan returns what is known of a text in this session.
func (s *Session) plan(a *assembly, sql []byte) *router.Plan { return s.proved(s.draft(a, sql)) }

// draft asks the router, unless the text is that of the unnamed statement, or the
// same bytes as just before.
func (s *Session) draft(a *assembly, sql []byte) *router.Plan {
	if p := s.unnamed.planFor(sql); p != nil {
		return p
	}
	if a.memo != nil && len(sql) > 0 && len(a.memoText) == len(sql) && &a.memoText[0] == &sql[0] {
		return a.memo
	}
	a.memo, a.memoText = s.srv.router.Plan(sql), sql
	return a.memo
}

// push notes a reply that will be owed. Inlined it would take room for an Owed on the
// stack of each caller, see Session.apart.
//
//go:noinline
func (s *Session) push(a *assembly, kind backend.Kind) {
	a.owed = append(a.owed, backend.Owed{Kind: kind, Sink: s})
	s.forged = false
}

// onClient is shown what the client has sent. It walks the messages in it and
// sends them on in as few writes as there are servers to send to.
func (s *Session) onClient(p []byte) (used int, err error) {
	if s.failing.Load() && !s.open {
		if err := s.rerun(); err != nil {
			return 0, err
		}
	}
	if len(p) == 0 { // nudged
		if s.leavesNow() {
			return 0, errShutdown
		}
		return 0, nil
	}
	now := router.Nanotime()
	s.lastSeen.Store(now)
	if s.canceled.Load() {
		s.canceled.Store(false) // of a statement that has had its answer
	}
	s.catchUp()
	s.detour = detour{}
	if used, err = s.walk(p, now); err != nil {
		return used, err
	}
	if s.open || s.rest > 0 || used < len(p) {
		// A client that leaves now leaves a server connection in the middle.
		s.io.LookAgain()
	}
	return used, nil
}

// walk deals with the messages in p, which are the client's, and sends them on.
// now is the time if it has just been asked for, else 0.
func (s *Session) walk(p []byte, now int64) (used int, err error) {
	a := assemblies.Get().(*assembly)
	a.now = now
	defer func() {
		a.reset()
		assemblies.Put(a)
	}()
	a.holding = s.rest > 0 && !s.drop // the last Send has left a message incomplete
	s.unit.from = 0
	for used < len(p) {
		if s.rest > 0 {
			n := min(s.rest, len(p)-used)
			if !s.drop {
				a.out.Relay(p[used : used+n])
			}
			s.rest -= n
			used += n
			continue
		}
		q := p[used:]
		if len(q) < wire.HeaderLen {
			break
		}
		if !s.open {
			s.unit = unit{from: used, first: true, alone: !a.holding, keep: !a.holding, reads: true, batch: s.batches}
			s.unit.whole = used == 0 && !a.holding && s.mayShare() && s.whole(q)
		}
		n, more, merr := s.message(a, q)
		if merr != nil {
			err = merr
			break
		}
		if more {
			break
		}
		used += n
	}
	if a.holding {
		s.trial(a, p[min(s.unit.from, used):used])
	}
	if ferr := s.flush(a); err == nil {
		err = ferr
	}
	if errors.Is(err, backend.ErrUnsent) {
		return s.unsent(p, used, err)
	}
	return used, err
}

// flush sends what has been put together and lets go of the lease.
func (s *Session) flush(a *assembly) error {
	if !a.holding {
		return nil
	}
	if a.wrote {
		s.wroteOn = s.lease
	}
	p := backend.Parcel{
		Client: s.id,
		Owed:   a.owed, Bytes: a.out.Bytes(), More: s.rest > 0 && !s.drop, Open: s.open, Wrote: a.wrote, Ends: a.ends, Pin: a.pin,
		Dirty: a.dirty, Trial: a.trial, Binds: a.binds, Parses: a.parses, Ask: a.ask, Names: a.names,
	}
	if a.statement != nil {
		p.Statement = a.statement
	}
	if a.pace != nil {
		p.Pace = a.pace
		if a.share && !a.wrote && !a.ends && !a.dirty && a.pin == 0 && a.ask == 0 {
			p.Share, p.At = s.db.ShareDepth, s.lastSeen.Load()
		}
	}
	err := s.lease.Send(&p)
	a.reset()
	if errors.Is(err, backend.ErrUnsent) {
		s.lease = nil
		return &lostServer{err: err, tell: wire.Fatalf(wire.CodeConnectionFailure, "server closed the connection unexpectedly").Because(err)}
	}
	if err != nil {
		_ = s.nc.SetWriteDeadline(time.Now().Add(goodbyeTimeout)) // the client may not be reading
		s.lease.Quiet(s)                                          // its goroutine may still have the server's last words
		s.lease.Wait()
		if s.failing.Load() && !s.ending.Load() {
			_ = s.nc.SetWriteDeadline(time.Time{})
			return nil // it is run again
		}
	}
	return err
}

// message deals with the message at the front of q. It returns how many bytes it
// is done with (the rest of the message may follow as s.rest), or more if it
// must see more of it first.
func (s *Session) message(a *assembly, q []byte) (n int, more bool, err error) {
	h, err := wire.ReadHeader(q, s.maxPacket())
	if err != nil {
		return 0, false, errLength(h.Type)
	}
	if s.skipping && h.Type != wire.Sync && h.Type != wire.Terminate {
		return s.discard(h)
	}
	switch h.Type {
	case wire.Query:
		if s.cfg.Proxy.DisablePqexec {
			return 0, false, errPqexec
		}
		return s.query(a, q, h)
	case wire.Parse:
		return s.parse(a, q, h)
	case wire.Bind:
		return s.bind(a, q, h)
	case wire.Describe, wire.Close:
		return s.target(a, q, h)
	case wire.Execute:
		return s.execute(a, q, h)
	case wire.Sync:
		return s.sync(a, q, h)
	case wire.Flush:
		return s.flushMessage(a, h)
	case wire.FunctionCall:
		return s.functionCall(a, h)
	case wire.CopyData, wire.CopyDone, wire.CopyFail:
		return s.copyMessage(a, h)
	case wire.Terminate:
		return 0, false, errTerminate
	}
	return 0, false, errType(h.Type)
}

var errPqexec = wire.Fatalf(wire.CodeProtocolViolation, "PQexec disallowed")

func errLength(typ byte) error {
	return wire.Fatalf(wire.CodeProtocolViolation, "invalid length of message type %q", string(rune(typ)))
}

func errType(typ byte) error {
	return wire.Fatalf(wire.CodeProtocolViolation, "invalid frontend message type %d", typ)
}

// execute handles Execute.
func (s *Session) execute(a *assembly, q []byte, h wire.Header) (n int, more bool, err error) {
	if n, more, done, err := s.listenExecute(a, q, h); done {
		return n, more, err
	}
	if err := s.needBatch(a, q); err != nil {
		return s.failBatch(err, h)
	}
	a.ends = a.ends || s.binds == 0 // of a portal that an earlier batch has left
	s.executed(a)
	return s.stream(h)
}

// functionCall handles FunctionCall.
func (s *Session) functionCall(a *assembly, h wire.Header) (int, bool, error) {
	s.unit.keep = false
	if s.begun != nil {
		if err := s.beginNow(a); err != nil {
			return s.failQuery(err, h)
		}
	}
	if err := s.need(a, functionPlan); err != nil {
		return s.failQuery(err, h)
	}
	s.effects(a, functionPlan, false, nil)
	s.push(a, backend.Function)
	return s.stream(h)
}

func (s *Session) maxPacket() int {
	if s.cfg.Proxy.MaxPacketSize <= 0 {
		return 1<<31 - 1
	}
	return int(s.cfg.Proxy.MaxPacketSize)
}

// parseMax returns the longest message in bytes that is held whole: the limit in
// force, but no more than the buffer was made for when the client logged in.
func (s *Session) parseMax() int { return min(s.cfg.Proxy.MaxQueryParseSize, s.heldMax) }

// stream lets onClient relay the message, as much of it as there is and the rest
// when it comes.
func (s *Session) stream(h wire.Header) (int, bool, error) {
	s.rest, s.drop = h.Size(), false
	return 0, false, nil
}

// discard lets onClient drop the message.
func (s *Session) discard(h wire.Header) (int, bool, error) {
	s.rest, s.drop = h.Size(), true
	return 0, false, nil
}

var functionPlan = &router.Plan{Class: router.ClassPrimary, Reason: "fast-path function call", Effects: router.EffectWrite | router.EffectOther}

var errString = wire.Fatalf(wire.CodeProtocolViolation, "invalid string in message")

// errBad is what a statement is refused with that the proxy itself does not take.
func errBad(plan *router.Plan) *wire.Error {
	return wire.Errorf(plan.Bad.Code, "%s", plan.Bad.Message)
}

// query handles a simple Query.
func (s *Session) query(a *assembly, q []byte, h wire.Header) (int, bool, error) {
	plan := router.TooLarge()
	if len(q) >= h.Size() {
		if h.Body == 0 || q[h.Size()-1] != 0 {
			return 0, false, errString
		}
		plan = s.plan(a, q[wire.HeaderLen:h.Size()-1])
	} else if h.Body <= s.parseMax() {
		return 0, true, nil
	}
	if s.begun != nil || plan.Effects.Any(router.EffectBegin) {
		if done, err := s.deferQuery(a, plan, q, h); err != nil {
			return s.failQuery(err, h)
		} else if done {
			return h.Size(), false, nil
		}
	}
	switch {
	case plan.Bad != nil:
		return s.refuseQuery(a, errBad(plan), h)
	case plan.Proxy != nil && s.open:
		return s.refuseQuery(a, errMixed, h)
	case plan.Proxy != nil:
		return s.command(a, plan, h)
	}
	if plan.Listens != nil && !s.open && s.shares(plan) {
		return s.listenQuery(a, plan, q, h)
	}
	a.explains = s.explains(plan) && !s.open
	o := backend.Owed{Kind: backend.Query, Sink: s}
	if plan.Use != router.PreparedNone && !s.open {
		s.unit.whole = false // what SQL has prepared is under the client's own names
		run, done, err := s.queryPrepared(a, q, h, plan, &o)
		if done || err != nil {
			return h.Size(), false, err
		}
		plan = run
	} else {
		if err := s.before(a, plan); err != nil {
			return 0, false, err
		}
		if err := s.need(a, plan); err != nil {
			return s.failQuery(err, h)
		}
		if plan.Use != router.PreparedNone {
			s.expose(a, plan) // in an open batch
		}
	}
	s.unit.note(plan)
	if plan.Effects.Has(router.EffectListen|router.EffectMulti) && plan.Use == router.PreparedNone && len(q) >= h.Size() && s.shares(plan) {
		if n, done, err := s.listenMixed(a, plan, q, h); done {
			return n, false, err
		}
	}
	s.unnamed.drop() // as the server does
	s.lease.NoUnnamed()
	if e := s.pin(a, pinsOf(plan, nil), q[wire.HeaderLen:min(len(q), h.Size())]); e != nil {
		return s.refuse(a, e, h)
	}
	s.sequences(a, plan, s.open)
	if s.db.TrackCommits {
		s.track(a, plan)
	}
	s.effects(a, plan, !s.open, nil)
	o.Signal = signalOf(plan)
	a.owed = append(a.owed, o)
	s.forged = false
	if o.Change != 0 {
		s.batches++ // an error here does not skip what comes behind
	}
	if len(q) < h.Size() {
		return s.stream(h)
	}
	if text, ok := s.ownChannels(plan, q[wire.HeaderLen:h.Size()-1]); ok {
		p := a.out.Made()
		*p = wire.AppendQuery(*p, text)
	} else {
		if s.shadowing && s.sampled() {
			s.listenFor(q[wire.HeaderLen:h.Size()-1], nil)
		}
		a.out.Relay(q[:h.Size()])
	}
	if s.began && !s.open { // in an open batch the client's own Sync ends it
		s.endBegin(a)
	}
	return h.Size(), false, s.settleAll(a)
}

// settleAll acts on what the statement or batch that has been put together does
// to the state of the session, if that must be known now.
func (s *Session) settleAll(a *assembly) error {
	if s.barrier != nil {
		if err := s.settle(a); err != nil {
			return err
		}
	}
	if s.listens() {
		return s.settleListens(a)
	}
	return nil
}

// failQuery answers a message that ends in ReadyForQuery and that no server was
// found for. The message is dropped. A fatal error ends the session.
func (s *Session) failQuery(err error, h wire.Header) (int, bool, error) {
	var e *wire.Error
	if !errors.As(err, &e) || e.Fatal() {
		return 0, false, err
	}
	if err := s.writeLocal(wire.AppendReadyForQuery(e.Append(nil), s.localStatus())); err != nil {
		return 0, false, err
	}
	return s.discard(h)
}

// failBatch answers a message of the extended protocol that no server was found
// for: everything up to Sync is dropped.
func (s *Session) failBatch(err error, h wire.Header) (int, bool, error) {
	var e *wire.Error
	if !errors.As(err, &e) || e.Fatal() {
		return 0, false, err
	}
	if err := s.writeLocal(e.Append(nil)); err != nil {
		return 0, false, err
	}
	s.open, s.skipping = false, true
	return s.discard(h)
}

// need makes s.lease a connection that is kept and can run the plan, and tells the
// client why it is this one if a.explains asks for that. No batch is open then.
func (s *Session) need(a *assembly, plan *router.Plan) error {
	if !a.explains {
		return s.lend(a, plan)
	}
	if err := s.calm(a); err != nil {
		return err
	}
	if err := s.lend(a, plan); err != nil {
		return err
	}
	return s.explain()
}

// lend is need without an explanation.
func (s *Session) lend(a *assembly, plan *router.Plan) error {
	if s.lease != nil {
		if kept, err := s.keep(a, plan); kept || err != nil {
			return err
		}
	}
	if plan.Effects.Any(router.EffectBegin) && s.mode == config.PoolStatement {
		return errBlock
	}
	if s.begun != nil {
		return s.lendBlock(a, plan)
	}
	return s.lendNew(a, plan)
}

// errBlock is what BEGIN gives with pool_mode = "statement".
var errBlock = wire.Fatalf(wire.CodeProtocolViolation, "transaction blocks not allowed in statement pooling mode")

// keep is lend where the last statement has left a lease. kept says that it is still
// one and can run the plan; else the session has none any more.
func (s *Session) keep(a *assembly, plan *router.Plan) (kept bool, err error) {
	if !a.holding {
		a.holding = s.hold()
		if a.holding && s.lease.Doubt() {
			p := a.out.Made()
			a.owed, *p = backend.AppendProbe(s, a.owed, *p)
			s.lease.NoUnnamed() // it is a simple query
		}
	}
	if s.ddl.Load() != nil && a.holding {
		s.endDDL()
	}
	if a.holding && s.block.begin != "" {
		if err := s.roam(a, plan); err != nil {
			return false, err
		}
	}
	if a.holding && !s.readTx && !s.open && s.behind() {
		// What stands before is answered first; then another is chosen, unless
		// something keeps the session here.
		if err := s.calm(a); err != nil {
			return false, err
		}
		a.holding = s.hold()
	}
	if a.holding && s.fits(plan) {
		if s.sight.blind {
			s.sight.blind = blind(plan)
		}
		if s.route.Plan != plan {
			s.route.Plan, s.route.Reason = plan, reasonHeld
		}
		s.followTransaction(plan)
		return true, nil
	}
	if a.holding {
		// A replica that cannot run this: what stands before is answered first.
		if err := s.flush(a); err != nil {
			return false, err
		}
		s.lease.Quiet(s)
		if s.lease.Hold(s) { // in a transaction after all: here or nowhere
			a.holding = true
			return true, nil
		}
	}
	s.lease, s.readTx, s.block = nil, false, block{}
	return false, nil
}

// lendBlock is lend for the first statement behind a BEGIN that was put off.
func (s *Session) lendBlock(a *assembly, plan *router.Plan) error {
	if s.begun.failed && !s.begun.own {
		return s.beginNow(a)
	}
	if err := s.lendNew(a, s.begun.plan); err != nil {
		s.begun.failed = true
		return err
	}
	s.begin(a)
	if s.sight.blind {
		s.sight.blind = blind(plan)
	}
	return nil
}

// lendNew makes s.lease another connection, for a plan.
func (s *Session) lendNew(a *assembly, plan *router.Plan) error {
	if _, err := s.equip(a, plan, a.now); err != nil {
		return err
	}
	if s.mode == config.PoolSession {
		a.pin |= backend.PinSession
	}
	s.followTransaction(plan)
	return nil
}

// maxAdoptions is how many connections are tried that fail to take over a client's
// settings for a reason that has nothing to do with them.
const maxAdoptions = 3

// equip is borrow with the client's settings: they are put in front of what is sent
// next.
func (s *Session) equip(a *assembly, plan *router.Plan, now int64) (*backend.Conn, error) {
	c, err := s.borrow(plan, now)
	if err != nil {
		return nil, err
	}
	a.holding = true
	if s.unit.whole && plan.Shareable() {
		a.pace, a.share = plan.Pace(s.leaseRole), s.waiter.Share
	}
	if want := s.wanted(c, plan); c.Applied() != want {
		return s.adopt(a, plan, want)
	}
	return c, nil
}

// adopt has the lease take over the settings that are wanted there, or another
// connection.
func (s *Session) adopt(a *assembly, plan *router.Plan, want *backend.Settings) (*backend.Conn, error) {
	for left := maxAdoptions - 1; ; left-- {
		c := s.lease
		p := a.out.Made()
		var risky bool
		if a.owed, *p, risky = c.Adopt(want, a.owed, *p); !risky {
			return c, nil
		}
		if again, err := s.adopted(a, left > 0); !again {
			return c, err
		}
		c, err := s.borrow(plan, 0)
		if err != nil {
			return nil, err
		}
		a.holding = true
		if want = s.wanted(c, plan); c.Applied() == want {
			return c, nil
		}
	}
}

// adopted waits until the server has taken over the client's settings. Where it
// refuses one, the client hears that in place of its statement, which must not
// run under others. again says that the connection is given up because it has
// ended, or because a timeout or a cancel has come in between, if retry allows.
func (s *Session) adopted(a *assembly, retry bool) (again bool, err error) {
	c := s.lease
	pin := a.pin
	a.pin |= backend.PinBrief
	if err := s.flush(a); err != nil {
		return false, err
	}
	c.Quiet(s)
	if !c.Hold(s) {
		if retry && !c.Alive() && s.endReason() == nil && !c.HadLastWords(s) {
			s.lease, a.pin = nil, pin
			return true, nil
		}
		return false, s.lostBatch()
	}
	a.holding, a.pin = true, pin
	failed := c.State().Failed
	if failed == nil {
		c.Unpin(backend.PinBrief &^ pin) // it is held
		return false, nil
	}
	if err := c.Send(&backend.Parcel{}); err != nil {
		return false, err
	}
	c.Unpin(backend.PinAll) // to be discarded
	s.lease = nil
	if retry && failed.Code == wire.CodeQueryCanceled {
		a.holding = false
		return true, nil
	}
	a.reset()
	failed.Severity = wire.SeverityError
	return false, failed.WithHint("The server refuses a setting that this session has.")
}

// reasonHeld is the reason of a statement that goes where the one before went.
const reasonHeld router.Reason = "same server: transaction, pin or pipeline"

// fits reports whether the lease is on a server that can run the plan.
func (s *Session) fits(plan *router.Plan) bool {
	if s.leaseRole == router.RolePrimary || s.readTx || s.open {
		return true
	}
	target, _ := s.wish(plan)
	return (plan.Class != router.ClassPrimary || s.hinted(plan)) && plan.Refused() == "" && s.serves(target)
}

// followTransaction notes whether a replica is lent for a whole transaction.
func (s *Session) followTransaction(plan *router.Plan) {
	if plan.Effects.Any(router.EffectBegin | router.EffectEnd) {
		s.readTx = s.leaseRole == router.RoleReplica && plan.Effects.Any(router.EffectBegin)
		s.enter(plan)
	}
}

// copyMessage handles what a client sends during COPY. After the end of it,
// which the client may not know of yet, such messages are dropped, as
// PostgreSQL does.
func (s *Session) copyMessage(a *assembly, h wire.Header) (int, bool, error) {
	s.unit.keep = false
	if !a.holding {
		a.holding = s.hold()
	}
	if !a.holding {
		return s.discard(h)
	}
	if h.Type != wire.CopyData {
		a.owed = append(a.owed, backend.Owed{Kind: backend.CopyEnd, Sink: s})
	}
	return s.stream(h)
}
