package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"pgproxy/auth"
	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/pool"
	"pgproxy/router"
	"pgproxy/wire"
)

// errCanceled is why a wait ends whose client has asked for it.
var errCanceled = wire.Errorf(wire.CodeQueryCanceled, "canceling statement due to user request")

// refresh takes over the configuration in force, once for each transaction.
func (s *Session) refresh() error {
	st := s.srv.current.Load()
	if s.cfg == st.Config {
		return nil
	}
	db, ok := st.Config.Database(s.database)
	if !ok {
		return errNoDatabase(s.database)
	}
	s.cfg, s.db, s.pools = st.Config, db, nil
	s.mode = db.PoolMode
	if u := st.Config.Users[s.user]; u != nil && u.PoolMode != 0 {
		s.mode = u.PoolMode
	}
	s.count(s.system)
	s.prover, s.path = nil, nil
	s.catalog = s.srv.catalogOf(db.DBName)
	if topo := s.srv.topo.Topology(db.Name); topo != nil && topo.Provers != nil {
		if pr := topo.Provers.Prover(db.DBName); pr.On() {
			s.prover = pr
		}
	}
	return nil
}

// poolOf returns the pool of a server: i is its index in the topology, addr its
// address there. pool.ErrClosed says that the topology is of another
// configuration than the session's.
func (s *Session) poolOf(i int, addr string) (*pool.Pool, error) {
	if i < len(s.pools) && s.pools[i] != nil && s.pools[i].Key.Server == addr {
		return s.pools[i], nil
	}
	for i >= len(s.pools) {
		s.pools = append(s.pools, nil)
	}
	err := s.apart(func() (err error) {
		s.pools[i], err = s.openPool(addr)
		return err
	})
	return s.pools[i], err
}

// openPool is poolOf for a server that the session has not asked for yet.
func (s *Session) openPool(addr string) (*pool.Pool, error) {
	user, password, err := auth.ServerPassword(s.identity, s.db, s.srv.current.Load().Users)
	if err != nil {
		return nil, wire.Fatalf(wire.CodeInvalidPassword, "no password to log in to the server with for user %q", s.user).Because(err)
	}
	p := s.srv.pools.Get(s.database, s.db, config.ServerAt(addr), user, password)
	if p.Closed() {
		return nil, pool.ErrClosed
	}
	return p, nil
}

// primaryPool returns the pool of the server that a write would go to now.
func (s *Session) primaryPool() (*pool.Pool, error) {
	for w := (wait{}); ; {
		ch, server, err := s.choose(welcomePlan, &w)
		if err != nil {
			return nil, err
		}
		p, err := s.poolOf(ch.Server, server.Addr)
		if !errors.Is(err, pool.ErrClosed) {
			return p, err
		}
		if err := s.renew(); err != nil {
			return nil, err
		}
	}
}

// wait is the time that a transaction has been waiting for a server. It begins
// when it is first asked for: most never wait.
type wait struct{ since int64 }

func (w *wait) age() time.Duration {
	now := router.Nanotime()
	if w.since == 0 {
		w.since = now
	}
	return time.Duration(now - w.since)
}

// choose picks a server for a plan, waiting for one up to failover_timeout from
// its beginning, or up to causal_wait for a replica that shows what a read must
// see. The server is one of the topology in force, not to be changed.
func (s *Session) choose(plan *router.Plan, w *wait) (router.Choice, *router.Server, error) {
	for {
		topo := s.srv.topo.Topology(s.db.Name)
		if topo == nil {
			return router.Choice{}, nil, errNoDatabase(s.database)
		}
		if topo.System != s.system {
			s.count(topo.System)
		}
		ch, seen, err := s.pick(topo, plan)
		if err != nil {
			return ch, nil, err
		}
		if ch.Server >= 0 && !ch.Behind {
			return ch, &topo.Servers[ch.Server], nil
		}
		if ready, err := s.awaitServer(topo, ch, seen, w); err != nil {
			return ch, nil, err
		} else if ready {
			return ch, &topo.Servers[ch.Server], nil
		}
	}
}

// pick chooses a server of topo for a plan, if there is one now. seen is the moment that
// a read must show.
func (s *Session) pick(topo *router.Topology, plan *router.Plan) (ch router.Choice, seen int64, err error) {
	var req router.Request
	s.request(plan, &req)
	if err := s.checkTarget(req.Target); err != nil {
		return ch, 0, err
	}
	ch = s.detour.choose(topo, s.policy(), &req)
	return ch, max(req.Seen.Floor, req.Seen.Last), nil
}

// awaitServer waits for a newer topology than topo, where the choice is one that is
// made only if nothing better comes in time; ready says that it is time.
func (s *Session) awaitServer(topo *router.Topology, ch router.Choice, seen int64, w *wait) (ready bool, err error) {
	if ch.Behind {
		s.srv.topo.Want(s.db.Name, seen)
	}
	left := s.db.CausalWait
	if left > 0 && ch.Behind {
		left -= w.age()
	}
	if ch.Server >= 0 && (!ch.Behind || left <= 0) {
		return true, nil
	}
	if ch.Server < 0 {
		left = s.db.FailoverTimeout - w.age()
	}
	if left <= 0 {
		return false, wire.Errorf(wire.CodeCannotConnectNow, "no server of database %q can run this: %s", s.database, ch.Reason).
			WithHint("SHOW SERVERS_HEALTH on the console tells the state of each server.")
	}
	return false, s.awaitTopology(topo, left)
}

// awaitTopology waits for a newer topology than topo, for at most d.
func (s *Session) awaitTopology(topo *router.Topology, d time.Duration) error {
	return s.waitFor(d, func(ctx context.Context) error { return s.srv.topo.Wait(ctx, s.db.Name, topo.Generation) })
}

// request makes req what the router is asked for a plan.
func (s *Session) request(plan *router.Plan, req *router.Request) {
	level := s.level()
	s.sight.shared = level == config.ConsistencyGlobal || s.db.ConsistencyScope == config.ScopeUser && level != config.ConsistencyEventual
	req.Plan = plan
	s.seen(level, &req.Seen)
	req.Target, req.By = s.wish(plan)
	req.Read = s.leaves(plan) || plan == movedPlan && req.By == router.ByLocal
}

func (s *Session) policy() router.Policy {
	p := router.Policy{
		Split: s.db.ReadWriteSplit, PrimaryReads: s.db.PrimaryReads, LoadBalance: s.db.LoadBalance,
	}
	if p.Split != config.SplitAny && (s.mode == config.PoolSession || s.serializable()) {
		p.Split = config.SplitOff // one server connection for the whole session; or no standby can
	}
	return p
}

// serializable reports whether the client's statements are serializable
// transactions, which a hot standby refuses.
func (s *Session) serializable() bool {
	level, ok := s.settings.Load().Get("default_transaction_isolation")
	return ok && strings.EqualFold(level, "serializable")
}

// waitFor runs f with a context that ends with the session, with a cancel
// request, or after d. Only the first two are errors.
func (s *Session) waitFor(d time.Duration, f func(context.Context) error) error {
	ctx, stop := context.WithTimeout(s.srv.ctx, d)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	if s.ended != nil {
		s.mu.Unlock()
		return s.ended
	}
	s.cancelWait = func() { cancel(errCanceled) }
	s.mu.Unlock()
	s.waiting.CompareAndSwap(0, router.Nanotime())
	_ = f(ctx)
	s.waiting.Store(0)
	s.mu.Lock()
	s.cancelWait = nil
	ended := s.ended
	s.mu.Unlock()
	if ended != nil {
		return ended
	}
	if s.srv.ctx.Err() != nil {
		return wire.Fatalf(wire.CodeAdminShutdown, "terminating connection due to administrator command")
	}
	if cause := context.Cause(ctx); errors.Is(cause, errCanceled) {
		return errCanceled
	}
	return nil
}

// borrow makes s.lease a connection that can run the plan. It is kept until the
// next Send. now is the time if it has just been asked for, else 0.
func (s *Session) borrow(plan *router.Plan, now int64) (*backend.Conn, error) {
	for w := (wait{}); ; {
		if err := s.refresh(); err != nil {
			return nil, err
		}
		ch, server, err := s.choose(plan, &w)
		if err != nil {
			return nil, err
		}
		p, err := s.poolOf(ch.Server, server.Addr)
		if errors.Is(err, pool.ErrClosed) {
			if err := s.renew(); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		s.waiter.Patient = s.welcomed.Load()
		s.waiter.Primary = ch.Role == router.RolePrimary && s.db.ReadWriteSplit != config.SplitAny
		s.waiter.Prefer = nil
		if plan.Effects.Any(router.EffectSequences) {
			s.waiter.Prefer = s.wroteOn
		}
		s.share(plan, &ch)
		c, err := p.Acquire(&s.waiter, s, now)
		now = 0
		if errors.Is(err, pool.ErrStandby) && s.fixedPrimary(p.Key.Server) {
			s.waiter.Primary = false
			c, err = p.Acquire(&s.waiter, s, 0)
		}
		if err == nil {
			return c, s.lent(c, plan, &ch, server)
		}
		if err := s.acquireError(err, p, &w); err != nil {
			return nil, err
		}
	}
}

// lent makes s.lease a connection that has been acquired.
func (s *Session) lent(c *backend.Conn, plan *router.Plan, ch *router.Choice, server *router.Server) error {
	s.lease, s.leaseRole = c, ch.Role
	s.alone = 0
	if s.ddl.Load() != nil {
		s.ddl.Store(nil) // its transaction is over
	}
	s.current.Store(c)
	if s.ending.Load() { // end has looked for a connection before there was one
		return s.endReason()
	}
	s.look(plan, ch.Role, server.Addr, server.Steady)
	s.note(plan, ch, server.Addr)
	if e := s.ears.Load(); e != nil && plan.Class != router.ClassRead {
		e.lend(c)
	}
	return nil
}

// fixedPrimary reports whether the configuration calls a server the primary,
// whatever it says itself.
func (s *Session) fixedPrimary(addr string) bool {
	return slices.ContainsFunc(s.db.Servers, func(v config.Server) bool { return v.Role == config.RolePrimary && v.Addr() == addr })
}

// renew forgets the pools of a configuration that is being replaced, and gives
// the reload a moment to come to its end.
func (s *Session) renew() error {
	s.pools = nil
	if err := s.waitFor(10*time.Millisecond, pause); err != nil {
		return err
	}
	return s.refresh()
}

// pause waits for the end of ctx.
func pause(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// movedPause is how long a session looks away from a server that is not for use any
// more.
const movedPause = 5 * time.Millisecond

// acquireError decides what the client hears of a connection that could not be
// had. nil means: try again.
func (s *Session) acquireError(err error, p *pool.Pool, w *wait) error {
	if ended := s.endReason(); ended != nil {
		return ended
	}
	var e *wire.Error
	switch {
	case errors.Is(err, pool.ErrClosed):
		s.pools = nil
		return nil
	case errors.Is(err, pool.ErrMoved) && w.age() < s.db.FailoverTimeout:
		return s.waitFor(movedPause, pause) // the picture without it is about to come, or there already
	case errors.Is(err, pool.ErrMoved):
		return wire.Errorf(wire.CodeCannotConnectNow, "server %s of database %q is not for use", p.Key.Server, s.database)
	case errors.Is(err, pool.ErrWaitTimeout):
		return wire.Fatalf(wire.CodeProtocolViolation, "query_wait_timeout")
	case errors.Is(err, pool.ErrUnreachable):
		s.srv.topo.Suspect(s.db.Name, p.Key.Server)
		if w.age() < s.db.FailoverTimeout {
			return s.waitFor(100*time.Millisecond, pause)
		}
		return wire.Errorf(wire.CodeCannotConnect, "server %s of database %q is not reachable", p.Key.Server, s.database).Because(err)
	case errors.As(err, &e):
		if e == errCanceled {
			return e
		}
		out := *e
		out.Severity = wire.SeverityFatal
		out.Detail = fmt.Sprintf("Server %s refused the login of user %q to database %q.", p.Key.Server, p.Key.User, s.db.DBName)
		return out.Because(err)
	}
	return err
}

// note remembers where a statement goes, for SHOW pgproxy.route and metrics.
func (s *Session) note(plan *router.Plan, ch *router.Choice, addr string) {
	s.shadowing = ch.Reason == router.ReasonShadow
	s.route = Route{Server: addr, Role: ch.Role, Reason: ch.Reason, Plan: plan}
	s.srv.routes.add(s.database, ch.Role, ch.Reason)
}

// sessionMode reports whether the lease lasts as long as the client.
func (s *Session) sessionMode() bool { return s.mode == config.PoolSession }
