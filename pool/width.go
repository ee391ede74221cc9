package pool

import "sync/atomic"

// A server that is busy on all its processors answers no more statements a second over
// more connections: it only takes longer for each. width finds over how many the single
// reads of a pool spread before they begin to share: the fewest that keep the server at
// work. It goes by how much longer statements take than the quickest of their shape, as
// TCP Vegas goes by round-trip times (Brakmo and Peterson, 1995): of n connections with
// statements that take r times as long as alone n(1-1/r) only wait for the others.
//
// It is no limit: who finds no place on one of them takes another connection.
type width struct {
	n      atomic.Int64 // 0: as many as there are
	slow   atomic.Int64 // sum of Served since the last step, in sixteenths
	served atomic.Int64 // statements since
}

// The numbers of the control loop: statements between two steps, how many times longer
// one of them counts at most, in sixteenths (a read from disk says nothing of the
// processors), and the bounds of the connections that only wait.
const (
	widthStep   = 128
	mostSlow    = 4 * 16
	leastQueued = 1
	mostQueued  = 3
)

// now returns the width; 0 is none yet.
func (w *width) now() int {
	if n := w.n.Load(); n > 0 {
		return int(n)
	}
	return 1 << 30
}

// Served is told how many times longer a statement took than the quickest of its shape,
// in sixteenths.
func (p *Pool) Served(slow int) {
	w := &p.width
	w.slow.Add(int64(min(slow, mostSlow)))
	if w.served.Add(1)%widthStep == 0 {
		w.step(int(p.leased.Load()))
	}
}

// step takes one step, with so many connections at work.
func (w *width) step(busy int) {
	sum := w.slow.Swap(0)
	if sum == 0 || busy == 0 {
		return
	}
	mean := float64(sum) / (16 * widthStep)
	queued := float64(busy) * (1 - 1/max(mean, 1))
	n := int(w.n.Load())
	switch {
	case queued > mostQueued && (n == 0 || n > busy):
		n = max(1, busy-1)
	case queued > mostQueued:
		n = max(1, n-1)
	case n > 0 && queued < leastQueued && busy >= n:
		n++
	}
	w.n.Store(int64(n))
}
