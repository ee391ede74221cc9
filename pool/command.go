package pool

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"pgproxy/backend"
)

// What the console asks of pools. A database of "" means all.

func (s *Set) of(database string) []*Pool {
	l := s.list()
	if database == "" {
		return l
	}
	var out []*Pool
	for _, p := range l {
		if p.Key.Database == database {
			out = append(out, p)
		}
	}
	return out
}

// Pause lends nothing more and waits until nothing is lent; idle connections
// are closed. If ctx ends first the database stays paused.
func (s *Set) Pause(ctx context.Context, database string) error {
	return s.stopLending(ctx, database, false)
}

// Suspend is Pause of everything that keeps the idle connections.
func (s *Set) Suspend(ctx context.Context) error { return s.stopLending(ctx, "", true) }

func (s *Set) stopLending(ctx context.Context, database string, suspend bool) error {
	s.mu.Lock()
	s.paused[database] = true
	s.suspended = s.suspended || suspend
	s.mu.Unlock()
	var lent []chan struct{}
	for _, p := range s.of(database) {
		p.mu.Lock()
		p.paused = true
		if !suspend {
			p.renewLocked()
		}
		p.growLocked() // which it cannot: it makes way for others
		if len(p.out) > 0 {
			if p.drained == nil {
				p.drained = make(chan struct{})
			}
			lent = append(lent, p.drained)
		}
		p.mu.Unlock()
	}
	for _, drained := range lent {
		select {
		case <-drained:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Resume lends again. Waiters keep their places; the time of the pause does not
// count as their wait. It reports whether anything was paused.
func (s *Set) Resume(database string) bool {
	s.mu.Lock()
	was := s.paused[database]
	delete(s.paused, database)
	if database == "" {
		was = len(s.paused) > 0 || was
		s.suspended = false
		clear(s.paused)
	}
	s.mu.Unlock()
	for _, p := range s.of(database) {
		still := s.Paused(p.Key.Database) // Set.mu comes before Pool.mu
		p.mu.Lock()
		if p.paused && !still {
			p.paused, was = false, true
			now := s.now()
			for w := p.first; w != nil; w = w.next {
				w.since = now
			}
			p.serveLocked()
			p.growLocked()
		}
		p.mu.Unlock()
	}
	return was
}

// Paused reports whether a database, or all, is paused.
func (s *Set) Paused(database string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.paused[""] || s.paused[database]
}

// AnyPaused reports whether anything is paused.
func (s *Set) AnyPaused() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.paused) > 0
}

// Suspended reports whether all is paused by Suspend.
func (s *Set) Suspended() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.suspended
}

// Reconnect replaces every connection: idle ones now, lent ones when they come
// back.
func (s *Set) Reconnect(database string) {
	for _, p := range s.of(database) {
		p.mu.Lock()
		p.renewLocked()
		p.growLocked()
		p.mu.Unlock()
	}
}

// WaitClose waits until no connection is left that Reconnect, or a changed
// configuration, has marked to be replaced.
func (s *Set) WaitClose(ctx context.Context, database string) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		old := false
		for _, p := range s.of(database) {
			p.mu.Lock()
			for _, m := range p.all {
				old = old || p.replacesLocked(m)
			}
			p.mu.Unlock()
		}
		if !old {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// replacesLocked reports whether a connection is to be closed when it comes
// free.
func (p *Pool) replacesLocked(m *member) bool { return m.retire || m.generation != p.generation }

// Kill closes every connection now; clients that have one lose it.
func (s *Set) Kill(database string) {
	for _, p := range s.of(database) {
		p.kill()
	}
}

// Stats is a copy of what a pool is doing, in PgBouncer's words.
type Stats struct {
	Key     Key
	Mode    string
	Limits  Limits
	Waiting int           // clients in the queue
	MaxWait time.Duration // how long the oldest of them has waited

	Active, Idle, Used, Tested, Login int // server connections
	ActiveCancel, BeingCanceled       int
	Pinned                            int
	PinReasons                        map[string]int // connections by reason; one may have several

	Paused bool

	Counters  backend.Counters
	Width     int               // over how many connections single reads spread before they share; 0: over all
	Assigned  uint64            // leases, and statements that shared one
	Wait      backend.Histogram // until a lease, or the turn on one that is shared
	Opened    uint64
	LoginFail uint64
	LastError string
}

// Servers is the sum of a pool's server connections.
func (s *Stats) Servers() int {
	return s.Active + s.Idle + s.Used + s.Tested + s.Login + s.BeingCanceled
}

// ServerInfo is one server connection in SHOW SERVERS.
type ServerInfo struct {
	backend.Info
	Pool  Key
	State string // active, idle, used, tested, being_canceled

	CloseNeeded bool   // to be closed when it comes free
	Apart       bool   // it is of Dial or Replicate, and not in the pool
	Replication string // logical or physical; "" for others
}

// Stats returns a copy for every pool, in order of their keys.
func (s *Set) Stats() []Stats {
	var out []Stats
	for _, p := range s.list() {
		st, _ := p.stats()
		out = append(out, st)
	}
	return out
}

// Servers returns a copy for every server connection.
func (s *Set) Servers() []ServerInfo {
	var out []ServerInfo
	for _, p := range s.list() {
		_, list := p.stats()
		out = append(out, list...)
	}
	return out
}

// stats copies under the pool's mutex first and asks the connections after it.
func (p *Pool) stats() (Stats, []ServerInfo) {
	p.mu.Lock()
	st := Stats{
		Key: p.Key, Mode: p.Mode.String(), Limits: p.limits, Waiting: p.waiting, Login: p.dialing, Paused: p.paused,
		Counters: p.gone, Width: int(p.width.n.Load()), Assigned: p.assigned, Wait: p.wait, Opened: p.opened, LoginFail: p.failed,
	}
	if p.lastErr != nil {
		st.LastError = p.lastErr.Error()
	}
	if p.first != nil {
		st.MaxWait = time.Duration(p.set.now() - p.first.since)
	}
	type one struct {
		c     *backend.Conn
		state connState
		old   bool
	}
	all := make([]one, 0, len(p.all))
	for c, m := range p.all {
		all = append(all, one{c, m.state, p.replacesLocked(m)})
	}
	apart, streams := slices.Collect(maps.Keys(p.apart)), slices.Collect(maps.Keys(p.streams))
	delay := p.limits.CheckDelay
	p.mu.Unlock()

	infos := make([]ServerInfo, 0, len(all))
	for _, x := range all {
		n := x.c.Counters()
		st.Counters.Merge(&n)
		i := ServerInfo{Info: x.c.Info(), Pool: p.Key, CloseNeeded: x.old}
		switch {
		case x.state == stateClosing:
			i.State = "closing"
			continue
		case i.Cancelling && !i.Active:
			i.State = "being_canceled"
			st.BeingCanceled++
		case x.state == stateLent && i.Cancelling:
			i.State = "active_cancel"
			st.Active++
			st.ActiveCancel++
		case x.state == stateLent:
			i.State = "active"
			st.Active++
		case delay > 0 && i.IdleFor > delay:
			i.State = "used" // as in PgBouncer: to be checked before it is lent
			st.Used++
		default:
			i.State = "idle"
			st.Idle++
		}
		if i.Pinned != 0 {
			st.Pinned++
			if st.PinReasons == nil {
				st.PinReasons = make(map[string]int)
			}
			for _, why := range strings.Split(i.Pinned.String(), ", ") {
				st.PinReasons[why]++
			}
		}
		infos = append(infos, i)
	}
	for _, c := range apart {
		n := c.Counters()
		st.Counters.Merge(&n)
		infos = append(infos, ServerInfo{Info: c.Info(), Pool: p.Key, State: "active", Apart: true})
	}
	for _, r := range streams {
		infos = append(infos, ServerInfo{Info: r.Info(), Pool: p.Key, State: "active", Apart: true, Replication: r.Kind})
	}
	st.Assigned += st.Counters.Shared
	st.Wait.Merge(&st.Counters.ShareWait)
	return st, infos
}
