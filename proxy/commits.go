package proxy

import (
	"errors"
	"strconv"
	"time"

	"pgproxy/backend"
	"pgproxy/pool"
	"pgproxy/router"
	"pgproxy/wire"
)

// Commits whose server dies before it answers, with track_commits: the new primary,
// or the old one if it is still that, is asked what has become of the transaction,
// and the client gets the true result. Where that cannot be proved it hears that it
// is not known.

// tracked is a COMMIT under way.
type tracked struct {
	xid      backend.Note
	at       int64  // when it was sent
	addr     string // of the server
	timeline uint32 // of the server then; 0 is not known
}

// track asks for the id of the transaction that a statement is about to commit, if
// it is a COMMIT and nothing else stands in the way.
func (s *Session) track(a *assembly, plan *router.Plan) {
	if plan.Tag != "COMMIT" || plan.Effects != router.EffectEnd || s.open || len(a.owed) > 0 || s.leaseRole != router.RolePrimary {
		return
	}
	s.pending.xid.Store(nil)
	p := a.out.Made()
	var ok bool
	if a.owed, *p, ok = s.lease.AppendXid(&s.pending.xid, a.owed, *p); !ok {
		return
	}
	s.unit.commit = true
	s.pending.at, s.pending.addr, s.pending.timeline = router.Nanotime(), s.lease.Addr, 0
	if server := s.serverAt(s.lease.Addr); server != nil {
		s.pending.timeline = server.Timeline
	}
}

// serverAt returns what is known of a server now, or nil.
func (s *Session) serverAt(addr string) *router.Server {
	topo := s.srv.topo.Topology(s.db.Name)
	if topo == nil {
		return nil
	}
	for i := range topo.Servers {
		if topo.Servers[i].Addr == addr {
			return &topo.Servers[i]
		}
	}
	return nil
}

// trackBatch is track for the batch at the front of q, all of which must be in hand.
func (s *Session) trackBatch(a *assembly, q []byte) {
	var plan *router.Plan
	binds := 0
	for len(q) >= wire.HeaderLen {
		h, err := wire.ReadHeader(q, s.maxPacket())
		if err != nil || len(q) < h.Size() {
			return
		}
		body := q[wire.HeaderLen:h.Size()]
		switch h.Type {
		case wire.Sync:
			if plan != nil && binds == 1 {
				s.track(a, plan)
			}
			return
		case wire.Parse:
			if m, err := wire.ReadParse(body); err == nil {
				plan = s.plan(a, m.Query)
			}
		case wire.Bind:
			binds++
			if _, name, _, ok := wire.ReadBindNames(body); ok && plan == nil {
				plan = s.planOf(name)
			}
		case wire.Describe, wire.Execute:
		default:
			return
		}
		q = q[h.Size():]
	}
}

// commitPlan routes the question what has become of a commit.
var commitPlan = &router.Plan{Class: router.ClassPrimary, Reason: "the outcome of a commit is looked up"}

// lookUp answers a COMMIT whose server has died.
func (s *Session) lookUp(f *backend.Failure) error {
	s.srv.topo.Suspect(s.db.Name, s.pending.addr)
	s.lease, s.readTx, s.block = nil, false, block{}
	outcome, err := s.outcome(f.Xid)
	if err != nil {
		s.log().Warn("the outcome of a commit could not be looked up", "xid", f.Xid, "error", err)
	} else {
		s.log().Info("the outcome of a commit was looked up", "xid", f.Xid, "outcome", outcome)
	}
	switch {
	case s.ending.Load():
		return s.endReason()
	case outcome == "committed":
		s.Answered(router.Nanotime(), true)
		return s.writeLocal(commitAnswer(f.Sent))
	case outcome == "aborted":
		e := wire.Errorf("40000", "the transaction was rolled back: its server died before it was committed")
		return s.writeLocal(wire.AppendReadyForQuery(e.Append(nil), wire.TxIdle))
	}
	tell := wire.Fatalf(wire.CodeConnectionFailure, "server closed the connection unexpectedly")
	tell.Detail = fates[backend.FateCommit]
	return &lostServer{err: errors.Join(errors.New("commit of unknown outcome"), err), tell: tell}
}

// commitAnswer is what a server says to a COMMIT: to a simple query, or to a batch.
func commitAnswer(sent []byte) (p []byte) {
	for len(sent) >= wire.HeaderLen {
		h, err := wire.ReadHeader(sent, len(sent))
		if err != nil || len(sent) < h.Size() {
			break
		}
		switch h.Type {
		case wire.Query:
			p = wire.AppendReadyForQuery(wire.AppendCommandComplete(p, "COMMIT"), wire.TxIdle)
		case wire.Parse:
			p = wire.AppendEmpty(p, wire.ParseComplete)
		case wire.Bind:
			p = wire.AppendEmpty(p, wire.BindComplete)
		case wire.Describe:
			if sent[wire.HeaderLen] == 'S' { // its parameters, of which there are none
				p = append(p, wire.ParameterDescription, 0, 0, 0, 6, 0, 0)
			}
			p = wire.AppendEmpty(p, wire.NoData)
		case wire.Execute:
			p = wire.AppendCommandComplete(p, "COMMIT")
		case wire.Sync:
			p = wire.AppendReadyForQuery(p, wire.TxIdle)
		}
		sent = sent[h.Size():]
	}
	return p
}

// stillRunning is how long a transaction that is still committing is left alone
// before it is asked for again.
const stillRunning = 50 * time.Millisecond

// notGivenOut is how pg_xact_status refuses an id that "is in the future". No snapshot
// tells as much: its xmax is below ids of transactions that are still committing.
const notGivenOut = "22023"

// outcome finds out what has become of a transaction: "committed", "aborted", or
// "unknown" if it cannot be proved.
func (s *Session) outcome(xid string) (string, error) {
	id, err := strconv.ParseUint(xid, 10, 64)
	if err != nil {
		return "", err
	}
	sql := "SELECT pg_catalog.pg_xact_status('" + xid + "'::pg_catalog.xid8)"
	for w := (wait{}); ; {
		asked := router.Nanotime()
		status, addr, err := s.askPrimary(sql, &w)
		switch {
		case err != nil:
			return "", err
		case status.Code == notGivenOut:
			return "aborted", nil // the server has never seen it
		case status.Value == "aborted":
			return status.Value, nil // also if the id was given to another transaction: ours has left nothing
		case status.Value == "committed":
			return s.ours(id, addr, asked, &w)
		case w.age() >= s.db.FailoverTimeout:
			return "unknown", nil
		}
		if err := s.waitFor(stillRunning, pause); err != nil { // in progress, or there was no answer
			return "", err
		}
	}
}

// ours says whether a committed transaction with this id must be ours. A server
// that was promoted knew all ids below its horizon before. One that has not
// restarted since has never forgotten any: the monitor's connection to it, which was
// there before the COMMIT, has lasted until after the question.
func (s *Session) ours(id uint64, addr string, asked int64, w *wait) (string, error) {
	for {
		topo := s.srv.topo.Topology(s.db.Name)
		server := s.serverAt(addr)
		switch {
		case topo == nil || server == nil:
			return "unknown", nil
		case s.pending.timeline != 0 && server.Timeline > s.pending.timeline:
			if id < server.Horizon {
				return "committed", nil
			}
			return "unknown", nil
		case addr != s.pending.addr || server.Steady == 0 || server.Steady > s.pending.at || w.age() >= s.db.FailoverTimeout:
			return "unknown", nil
		case server.Covered > asked:
			return "committed", nil
		}
		if err := s.waitFor(stillRunning, pause); err != nil {
			return "", err
		}
	}
}

// askPrimary runs a question of one row and column on the primary. The zero Noted is
// no answer.
func (s *Session) askPrimary(sql string, w *wait) (answer backend.Noted, addr string, err error) {
	ch, server, err := s.choose(commitPlan, w)
	if err != nil {
		return answer, "", err
	}
	p, err := s.poolOf(ch.Server, server.Addr)
	if errors.Is(err, pool.ErrClosed) {
		return answer, "", s.renew()
	}
	if err != nil {
		return answer, "", err
	}
	s.waiter.Primary = true
	c, err := p.Acquire(&s.waiter, s, 0)
	if err != nil {
		return answer, "", s.acquireError(err, p, w)
	}
	s.lease, s.leaseRole = c, ch.Role
	s.current.Store(c)
	var note backend.Note
	owed, bytes := backend.AppendNote(sql, &note, nil, nil)
	if err := c.Send(&backend.Parcel{Owed: owed, Bytes: bytes}); err != nil {
		s.lease = nil
		return answer, "", nil // another one
	}
	c.Quiet(s)
	s.lease = nil
	if v := note.Load(); v != nil {
		return *v, server.Addr, nil
	}
	return answer, "", nil
}
