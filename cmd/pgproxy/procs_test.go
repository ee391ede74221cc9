package main

import (
	"context"
	"log/slog"
	"runtime"
	"slices"
	"testing"
)

func TestGovernor(t *testing.T) {
	var got []int
	g := &governor{most: 3, now: 1, limit: func(n int) { got = append(got, n) }, log: slog.New(slog.DiscardHandler)}
	steps := func(n int, busy float64) {
		for range n {
			g.step(busy)
		}
	}
	steps(100, 0.7) // one is enough
	steps(procsHaste-1, 0.9)
	steps(1, 0.7)          // that was a moment
	steps(procsHaste, 0.8) // not any more
	steps(100, 1.4)        // two are
	steps(5, 2.9)          // all of them, and there are no more
	steps(procsPatience-1, 0.1)
	steps(1, 2.0)             // busy again in time
	steps(procsPatience, 1.3) // on two this is a load for less
	steps(procsPatience, 0.1)
	steps(100, 0.0)
	if want := []int{2, 3, 2, 1}; !slices.Equal(got, want) {
		t.Errorf("processors %v, want %v", got, want)
	}
}

func TestGovernorGivesBack(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	ctx, stop := context.WithCancel(t.Context())
	done := governProcs(ctx, slog.New(slog.DiscardHandler))
	stop()
	<-done
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("%d processors after it has ended, %d before", n, before)
	}
}

func TestGovernorLeavesTheEnvironment(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	t.Setenv("GOMAXPROCS", "7")
	<-governProcs(t.Context(), slog.New(slog.DiscardHandler))
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("%d processors, want %d as before", n, before)
	}
}
