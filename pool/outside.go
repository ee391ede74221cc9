package pool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrNoRoom is returned where the limits that pools share leave no room for a
// connection beside them.
var ErrNoRoom = errors.New("max_host_connections, max_db_connections or max_user_connections is reached")

// roomTick is how often who waits for room looks whether it still may.
const roomTick = 20 * time.Millisecond

// outside is who opens connections beside the pools, as the limits that pools share
// see it: its waiters are goroutines.
type outside struct {
	set   *Set
	share *share
	idle  func(fresh bool) bool // closes a connection that nobody uses; nil: there are none

	mu      sync.Mutex
	waiting int           // guarded by mu
	woken   chan struct{} // guarded by mu; closed by wake
}

func (s *Set) newOutside(k Key, idle func(fresh bool) bool) *outside {
	o := &outside{set: s, idle: idle, woken: make(chan struct{})}
	o.share = newShare(o, k)
	if k.Database == "" && k.User == "" { // counts for the server alone
		o.share.keys[ofUser], o.share.keys[ofDatabase] = limitKey{}, limitKey{}
	}
	return o
}

// take waits for a place until ctx ends; may says whether one can be used at all,
// or never. The place is given back by leave and free, or by give.
func (o *outside) take(ctx context.Context, may func() (bool, error)) error {
	o.mu.Lock()
	o.waiting++
	o.mu.Unlock()
	defer o.leaveLine()
	t := time.NewTicker(roomTick)
	defer t.Stop()
	for {
		o.mu.Lock()
		woken := o.woken
		o.mu.Unlock()
		can, err := may()
		switch {
		case err != nil:
			return err
		case can && o.set.caps.take(o.share, true):
			return nil
		case !can:
			o.set.caps.withdraw(o.share)
		}
		select {
		case <-woken:
		case <-t.C:
		case <-ctx.Done():
			if can {
				return fmt.Errorf("%w: %w", ErrNoRoom, ctx.Err())
			}
			return ctx.Err()
		}
	}
}

// leaveLine counts out one who has waited.
func (o *outside) leaveLine() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiting--; o.waiting == 0 {
		o.set.caps.withdraw(o.share)
	}
}

// leave and free are those of caps, give is both.
func (o *outside) leave() { o.set.caps.leave(o.share) }
func (o *outside) free()  { o.set.caps.free(o.share) }
func (o *outside) give()  { o.leave(); o.free() }

// wake implements claimant. If nobody waits any more, leaveLine has said so.
func (o *outside) wake() {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.woken)
	o.woken = make(chan struct{})
}

// yield implements claimant.
func (o *outside) yield(fresh bool) bool { return o.idle != nil && o.idle(fresh) }

// wake implements claimant.
func (p *Pool) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.growLocked()
}

// yield implements claimant: the connection that goes is the coldest.
func (p *Pool) yield(fresh bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == 0 || p.first != nil && !p.paused || !fresh && p.idle[0].Idle() < slice {
		return false
	}
	c := p.idle[0]
	p.idle = append(p.idle[:0], p.idle[1:]...)
	p.closeLocked(c, memberOf(c))
	return true
}

// Guests counts server connections that are opened beside the pools for a purpose
// of the proxy's own. Any number of goroutines may use it.
type Guests struct {
	set  *Set
	idle func(k Key, fresh bool) bool

	mu    sync.Mutex
	seats map[Key]*seat
}

// seat is the share of a key, as long as it is in use.
type seat struct {
	*outside
	users int // who waits and who has a place; guarded by Guests.mu
}

// Guests makes one. idle is to close a connection that the holder keeps and does not
// use, when others wait; without fresh one that was not in use a moment ago, 200 ms.
// It reports whether there was one, and must not wait for anything.
func (s *Set) Guests(idle func(k Key, fresh bool) bool) *Guests {
	return &Guests{set: s, idle: idle, seats: make(map[Key]*seat)}
}

// Enter waits until the limits allow one more connection with the key, and counts
// it. The caller must call Leave. If kept says before that there is one by now that
// will do, it returns false: see Nudge. If ctx ends first the error is ErrNoRoom.
func (g *Guests) Enter(ctx context.Context, k Key, kept func() bool) (bool, error) {
	s := g.seat(k)
	err := s.take(ctx, func() (bool, error) {
		if kept() {
			return false, errKept
		}
		return true, g.set.ctx.Err()
	})
	if err != nil {
		g.stand(k)
	}
	if errors.Is(err, errKept) {
		return false, nil
	}
	return err == nil, err
}

var errKept = errors.New("there is a connection already")

// Nudge has those who wait in Enter ask kept again.
func (g *Guests) Nudge(k Key) {
	g.mu.Lock()
	s := g.seats[k]
	g.mu.Unlock()
	if s != nil {
		s.wake()
	}
}

// TryEnter is Enter for what can be done without: it does not wait, and takes no
// place for which somebody waits.
func (g *Guests) TryEnter(k Key) bool {
	s := g.seat(k)
	ok := g.set.caps.take(s.share, false)
	if !ok {
		g.stand(k)
	}
	return ok
}

// Leave is to be called when the server has let go of a connection.
func (g *Guests) Leave(k Key) {
	g.mu.Lock()
	s := g.seats[k]
	g.mu.Unlock()
	s.give()
	g.stand(k)
}

func (g *Guests) seat(k Key) *seat {
	g.set.mu.RLock()
	most := sharedLimits(g.set.cfg, k)
	g.set.mu.RUnlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.seats[k]
	if s == nil {
		s = &seat{outside: g.set.newOutside(k, func(fresh bool) bool { return g.idle(k, fresh) })}
		g.seats[k] = s
	}
	s.users++
	g.set.caps.limit(s.share, most)
	return s
}

// stand forgets a seat that nobody uses any more.
func (g *Guests) stand(k Key) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.seats[k]; s.users == 1 {
		delete(g.seats, k)
	} else {
		s.users--
	}
}
