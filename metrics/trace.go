package metrics

import (
	"math/rand/v2"
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

// Trace returns what to give to the proxy.Server, so that logins are counted.
func (m *Metrics) Trace() *proxy.Trace {
	return &proxy.Trace{Login: func(ok bool) {
		if ok {
			m.loginsOK.add()
		} else {
			m.loginsFailed.add()
		}
	}}
}
