package pool

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// patience is how long the oldest waiter of a pool that a shared limit keeps
// from growing leaves other pools their connections, as long as these have
// waiters of their own: a connection that changes pools costs a login.
const patience = 200 * time.Millisecond

// caps counts server connections against the limits that span pools:
// max_db_connections and max_user_connections, each for one server. It owns its
// own mutex, which may be taken under a pool's and is held for nothing else.
type caps struct {
	mu      sync.Mutex
	used    map[capKey]int
	starved []*starving // pools that were refused and still have waiters, in that order
	hungry  atomic.Bool // starved is not empty
}

type capKey struct {
	server, name string
	user         bool
}

// starving is a pool's place in the order of those that were refused.
type starving struct {
	pool           *Pool
	db, user       capKey
	maxDB, maxUser int
	since          int64 // when its oldest waiter came
	asked          bool  // a connection is being closed in its favour
}

func newCaps() *caps { return &caps{used: make(map[capKey]int)} }

// demandLocked describes p, whose mutex is held.
func (p *Pool) demandLocked() *starving {
	s := &starving{
		pool: p, db: capKey{p.Key.Server, p.Key.Database, false}, user: capKey{p.Key.Server, p.Key.User, true},
		maxDB: p.limits.MaxDB, maxUser: p.limits.MaxUser,
	}
	if p.first != nil {
		s.since = p.first.since
	}
	return s
}

// take counts one more connection of p, unless a limit forbids it or a pool that
// was refused earlier can have the place. If p has waiters it is then called
// again when there may be room. p's mutex is held.
func (c *caps) take(p *Pool) bool {
	me := p.demandLocked()
	c.mu.Lock()
	defer c.mu.Unlock()
	at := len(c.starved)
	var reserved map[capKey]int
	for i, s := range c.starved {
		if s.pool == p {
			at = i
			break
		}
		if c.roomLocked(s, reserved) {
			if reserved == nil {
				reserved = make(map[capKey]int)
			}
			reserved[s.db]++
			reserved[s.user]++
		}
	}
	if c.roomLocked(me, reserved) {
		c.used[me.db]++
		c.used[me.user]++
		if at < len(c.starved) {
			c.dropLocked(at)
		}
		return true
	}
	if p.waiting <= p.dialing {
		return false // it wants spare connections only
	}
	if at == len(c.starved) {
		c.starved = append(c.starved, me)
		c.hungry.Store(true)
	}
	me = c.starved[at]
	me.maxDB, me.maxUser = p.limits.MaxDB, p.limits.MaxUser
	if !me.asked {
		me.asked = true
		p.set.goes.Add(1)
		go func() {
			defer p.set.goes.Done()
			p.set.makeRoom(me)
		}()
	}
	return false
}

func (c *caps) roomLocked(s *starving, reserved map[capKey]int) bool {
	return (s.maxDB <= 0 || c.used[s.db]+reserved[s.db] < s.maxDB) &&
		(s.maxUser <= 0 || c.used[s.user]+reserved[s.user] < s.maxUser)
}

func (c *caps) dropLocked(i int) {
	c.starved = slices.Delete(c.starved, i, i+1)
	c.hungry.Store(len(c.starved) > 0)
}

// give counts one connection of p less and lets the refused try again.
func (c *caps) give(p *Pool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range [...]capKey{{p.Key.Server, p.Key.Database, false}, {p.Key.Server, p.Key.User, true}} {
		if c.used[k]--; c.used[k] <= 0 {
			delete(c.used, k)
		}
	}
	c.wakeLocked(p.set)
}

// forget takes p out of the order: it cannot grow or need not. p's mutex is held.
func (c *caps) forget(p *Pool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.starved {
		if s.pool == p {
			c.dropLocked(i)
			c.wakeLocked(p.set)
			return
		}
	}
}

// wakeLocked lets all that were refused try again, in their order.
func (c *caps) wakeLocked(set *Set) {
	if len(c.starved) == 0 {
		return
	}
	var again []*Pool
	for _, s := range c.starved {
		s.asked = false
		again = append(again, s.pool)
	}
	set.goes.Add(1)
	go func() {
		defer set.goes.Done()
		for _, q := range again {
			q.mu.Lock()
			q.growLocked()
			q.mu.Unlock()
		}
	}()
}

// blocksLocked reports whether a connection of p stands in the way of s.
func (c *caps) blocksLocked(p *Pool, s *starving) bool {
	return p != s.pool && p.Key.Server == s.pool.Key.Server &&
		(s.maxDB > 0 && c.used[s.db] >= s.maxDB && p.Key.Database == s.db.name ||
			s.maxUser > 0 && c.used[s.user] >= s.maxUser && p.Key.User == s.user.name)
}

// claims reports whether a connection of p that has come free is to be closed in
// favour of another pool. p's mutex is held.
func (c *caps) claims(p *Pool) bool {
	if !c.hungry.Load() {
		return false
	}
	now := p.set.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.starved {
		if s.asked || !c.blocksLocked(p, s) {
			continue
		}
		if p.first == nil || p.paused || s.since < p.first.since && now-s.since > int64(patience) {
			s.asked = true
			return true
		}
	}
	return false
}

// makeRoom closes the coldest idle connection of a pool that stands in the way
// of x.
func (s *Set) makeRoom(x *starving) {
	for _, q := range s.list() {
		q.mu.Lock()
		if len(q.idle) > 0 && q.first == nil {
			s.caps.mu.Lock()
			blocks := s.caps.blocksLocked(q, x)
			s.caps.mu.Unlock()
			if blocks {
				c := q.idle[0]
				q.idle = slices.Delete(q.idle, 0, 1)
				q.closeLocked(c, q.all[c])
				q.mu.Unlock()
				return
			}
		}
		q.mu.Unlock()
	}
	s.caps.mu.Lock()
	x.asked = false // whatever comes free next is for x
	s.caps.mu.Unlock()
}
