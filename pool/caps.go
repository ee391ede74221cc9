package pool

import (
	"sync"
	"sync/atomic"
)

// caps counts server connections against the limits that span pools:
// max_db_connections and max_user_connections, each for one server. It owns its
// own mutex, which may be taken under a pool's and is held for nothing else.
type caps struct {
	mu      sync.Mutex
	used    map[capKey]int
	starved map[*Pool]struct{} // refused since the last connection was given back
	hungry  atomic.Bool        // starved is not empty
}

type capKey struct {
	server, name string
	user         bool
}

func newCaps() *caps {
	return &caps{used: make(map[capKey]int), starved: make(map[*Pool]struct{})}
}

func capKeys(p *Pool) (db, user capKey) {
	return capKey{p.Key.Server, p.Key.Database, false}, capKey{p.Key.Server, p.Key.User, true}
}

// take counts one more connection of p, unless a limit forbids it. A pool that
// was refused is called again when a connection is given back.
func (c *caps) take(p *Pool) bool {
	db, user := capKeys(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := p.limits.MaxDB; l > 0 && c.used[db] >= l {
		c.starveLocked(p)
		return false
	}
	if l := p.limits.MaxUser; l > 0 && c.used[user] >= l {
		c.starveLocked(p)
		return false
	}
	c.used[db]++
	c.used[user]++
	return true
}

// starveLocked remembers p and asks the pools that share its limits to close an
// idle connection in its favour.
func (c *caps) starveLocked(p *Pool) {
	if _, ok := c.starved[p]; ok {
		return
	}
	c.starved[p] = struct{}{}
	c.hungry.Store(true)
	p.set.goes.Add(1)
	go func() {
		defer p.set.goes.Done()
		p.set.makeRoom(p)
	}()
}

// give counts one connection of p less and lets the refused try again.
func (c *caps) give(p *Pool) {
	db, user := capKeys(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range [...]capKey{db, user} {
		if c.used[k]--; c.used[k] <= 0 {
			delete(c.used, k)
		}
	}
	if len(c.starved) == 0 {
		return
	}
	again := c.starved
	c.starved = make(map[*Pool]struct{})
	c.hungry.Store(false)
	p.set.goes.Add(1)
	go func() {
		defer p.set.goes.Done()
		for q := range again {
			q.mu.Lock()
			q.growLocked()
			q.mu.Unlock()
		}
	}()
}

// makeRoom closes the coldest idle connection of a pool that shares a limit
// with p.
func (s *Set) makeRoom(p *Pool) {
	for _, q := range s.list() {
		if q == p || q.Key.Server != p.Key.Server || q.Key.Database != p.Key.Database && q.Key.User != p.Key.User {
			continue
		}
		q.mu.Lock()
		if len(q.idle) > 0 && q.first == nil {
			c := q.idle[0]
			q.idle = q.idle[1:]
			q.closeLocked(c, q.all[c])
			q.mu.Unlock()
			return
		}
		q.mu.Unlock()
	}
}
