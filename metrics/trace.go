package metrics

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"pgproxy/proxy"
)

// shards is how many cells a counter has, so that processors seldom meet in one.
const shards = 8

// counter is a counter that many goroutines add to at once.
type counter [shards]struct {
	n atomic.Uint64
	_ [56]byte // the rest of a cache line
}

func (c *counter) add() { c[rand.Uint32()%shards].n.Add(1) }

func (c *counter) value() (n uint64) {
	for i := range c {
		n += c[i].n.Load()
	}
	return n
}

// routeKey names one of the counters of routed statements.
type routeKey struct{ database, role, reason string }

// maxRoutes bounds how many of them there are: with "*" clients choose the names
// of databases. What comes later counts as database "(other)".
const maxRoutes = 4096

// routes counts routed statements. Its map is replaced, never changed, so that
// reading it costs no lock and no allocation.
type routes struct {
	current atomic.Pointer[map[routeKey]*counter]
	mu      sync.Mutex // held while the map is replaced
}

func (r *routes) add(k routeKey) {
	if m := r.current.Load(); m != nil {
		if c := (*m)[k]; c != nil {
			c.add()
			return
		}
	}
	r.grow(k).add()
}

// grow returns the counter for a key that has not been seen before.
func (r *routes) grow(k routeKey) *counter {
	r.mu.Lock()
	defer r.mu.Unlock()
	var old map[routeKey]*counter
	if m := r.current.Load(); m != nil {
		old = *m
	}
	if len(old) >= maxRoutes {
		k.database = "(other)"
	}
	if c := old[k]; c != nil {
		return c
	}
	next := make(map[routeKey]*counter, len(old)+1)
	maps.Copy(next, old)
	c := new(counter)
	next[k] = c
	r.current.Store(&next)
	return c
}

// values returns a copy.
func (r *routes) values() map[routeKey]uint64 {
	out := make(map[routeKey]uint64)
	if m := r.current.Load(); m != nil {
		for k, c := range *m {
			out[k] = c.value()
		}
	}
	return out
}

// Trace returns what to give to the proxy.Server, so that logins and routes are
// counted. It allocates nothing for what it has seen before.
func (m *Metrics) Trace() *proxy.Trace {
	t := &proxy.Trace{Login: func(ok bool) {
		if ok {
			m.loginsOK.add()
		} else {
			m.loginsFailed.add()
		}
	}}
	traceRoutes(&t.Routed, &m.routes)
	return t
}

// traceRoutes sets f. Its types belong to package router, which is none of this
// package's business: they are inferred.
func traceRoutes[R fmt.Stringer, S ~string](f *func(string, R, S), r *routes) {
	*f = func(database string, role R, reason S) { r.add(routeKey{database, role.String(), string(reason)}) }
}
