package proxy

import (
	"runtime"
	"sync/atomic"
	"time"
)

// A storm of logins must leave those alone who are in: what a login computes is done
// for few at once, and connections are taken up no faster than that while many log
// in. Nobody waits for a client that does not answer.

const (
	// crowdedAt is how many clients log in at once before accepting slows down.
	crowdedAt = 8

	// acceptPause is the least time between two connections then.
	acceptPause = 500 * time.Microsecond

	// queuedAt is how many logins wait for their turn before accepting stops, for
	// maxPauses at most: they are all on their way.
	queuedAt  = 2
	maxPauses = 200
)

// entrance is where clients log in.
type entrance struct {
	slots   chan struct{} // one token for each login that computes
	waiting atomic.Int64  // for one
}

func newEntrance() *entrance {
	return &entrance{slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
}

// compute waits for the client's turn, until pause. Between the two it must wait for
// nothing.
func (c *loginConn) compute() {
	if !c.computing {
		e := c.s.srv.entrance
		e.waiting.Add(1)
		e.slots <- struct{}{}
		e.waiting.Add(-1)
		c.computing = true
	}
}

func (c *loginConn) pause() {
	if c.computing {
		c.computing = false
		<-c.s.srv.entrance.slots
	}
}

// pace slows an accept loop down while many log in.
func (s *Server) pace() {
	if s.entering.Load() > crowdedAt {
		time.Sleep(acceptPause)
		for i := 1; i < maxPauses && s.entrance.waiting.Load() > queuedAt; i++ {
			time.Sleep(acceptPause)
		}
	}
}
