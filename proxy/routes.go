package proxy

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"pgproxy/router"
)

// RouteCount is how often statements or transactions of a database were given a
// server of a role for one reason. Those that followed on the same lease are not
// counted.
type RouteCount struct {
	Database string // as clients ask for it
	Role     router.Role
	Reason   router.Reason
	Count    uint64
}

// Routes returns all counts, by database, role and reason.
func (s *Server) Routes() []RouteCount { return s.routes.list() }

// routeShards is how many cells a counter has, so that processors seldom meet in
// one.
const routeShards = 8

type routeCounter [routeShards]struct {
	n atomic.Uint64
	_ [56]byte // the rest of a cache line
}

// routeKey names one of the counters.
type routeKey struct {
	database string
	role     router.Role
	reason   router.Reason
}

// maxRoutes bounds how many of them there are: with "*" clients choose the names
// of databases. What comes later counts as database "(other)".
const maxRoutes = 4096

// routes counts. Its map is replaced, never changed, so that reading it costs no
// lock and no allocation.
type routes struct {
	current atomic.Pointer[map[routeKey]*routeCounter]
	mu      sync.Mutex // held while the map is replaced
}

func (r *routes) add(database string, role router.Role, reason router.Reason) {
	k := routeKey{database, role, reason}
	var c *routeCounter
	if m := r.current.Load(); m != nil {
		c = (*m)[k]
	}
	if c == nil {
		c = r.grow(k)
	}
	c[rand.Uint32()%routeShards].n.Add(1)
}

// grow returns the counter for a key that has not been seen before.
func (r *routes) grow(k routeKey) *routeCounter {
	r.mu.Lock()
	defer r.mu.Unlock()
	var old map[routeKey]*routeCounter
	if m := r.current.Load(); m != nil {
		old = *m
	}
	if len(old) >= maxRoutes {
		k.database = "(other)"
	}
	if c := old[k]; c != nil {
		return c
	}
	next := make(map[routeKey]*routeCounter, len(old)+1)
	maps.Copy(next, old)
	c := new(routeCounter)
	next[k] = c
	r.current.Store(&next)
	return c
}

func (r *routes) list() []RouteCount {
	var out []RouteCount
	if m := r.current.Load(); m != nil {
		for k, c := range *m {
			n := uint64(0)
			for i := range c {
				n += c[i].n.Load()
			}
			out = append(out, RouteCount{k.database, k.role, k.reason, n})
		}
	}
	slices.SortFunc(out, func(a, b RouteCount) int {
		return cmp.Or(cmp.Compare(a.Database, b.Database), cmp.Compare(a.Role, b.Role), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}
