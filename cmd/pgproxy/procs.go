package main

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"syscall"
	"time"
)

// A relay is mostly system calls, each a few microseconds long. Spread thinly
// over many processors the Go scheduler spends more on waking and parking its
// threads than the relay itself takes: with two processors and a load for half of
// one, a transaction costs a quarter more than on one. So the process begins with
// one and takes the next when those it has are busy.
const (
	procsInterval = 100 * time.Millisecond
	procsBusy     = 0.75 // of the processors in use: take another one
	procsHaste    = 3    // intervals in a row before one is taken: clients that log in are no load
	procsIdle     = 0.7  // of one processor less: give one back. On fewer the same load takes less
	procsPatience = 10   // intervals in a row before one is given back
)

// governor sets how many processors the process uses. Its owner is the goroutine
// in run.
type governor struct {
	most  int // what the machine, or the control group, allows
	now   int
	calm  int // intervals in a row in which one less would do
	tight int // intervals in a row in which they were busy
	limit func(n int)
	log   *slog.Logger
}

// governProcs starts a governor that ends with ctx, unless GOMAXPROCS is set in
// the environment: then that counts. The channel is closed when it has ended.
func governProcs(ctx context.Context, log *slog.Logger) (done <-chan struct{}) {
	ch := make(chan struct{})
	most := runtime.GOMAXPROCS(0)
	if os.Getenv("GOMAXPROCS") != "" || most == 1 {
		close(ch)
		return ch
	}
	g := &governor{most: most, now: 1, limit: func(n int) { runtime.GOMAXPROCS(n) }, log: log}
	g.limit(g.now)
	go func() {
		defer close(ch)
		defer g.limit(most)
		g.run(ctx)
	}()
	return ch
}

// run looks every procsInterval until ctx ends.
func (g *governor) run(ctx context.Context) {
	t := time.NewTicker(procsInterval)
	defer t.Stop()
	last, used := time.Now(), cpuTime()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now, u := time.Now(), cpuTime()
		g.step(float64(u-used) / float64(now.Sub(last)))
		last, used = now, u
	}
}

// step takes in how many processors were busy during the last interval.
func (g *governor) step(busy float64) {
	if busy > procsBusy*float64(g.now) && g.now < g.most {
		g.calm = 0
		if g.tight++; g.tight >= procsHaste {
			g.set(g.now + 1)
		}
		return
	}
	g.tight = 0
	switch {
	case busy < procsIdle*float64(g.now-1):
		if g.calm++; g.calm >= procsPatience {
			g.set(g.now - 1)
		}
	default:
		g.calm = 0
	}
}

func (g *governor) set(n int) {
	g.now, g.calm, g.tight = n, 0, 0
	g.limit(n)
	g.log.Debug("processors in use", "count", n, "most", g.most)
}

// cpuTime returns the processor time that the process has used, user and system.
func cpuTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
