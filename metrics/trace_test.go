package metrics

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/pool"
	"pgproxy/router"
)

func emptySet(t *testing.T) *pool.Set {
	s := pool.New(&config.Config{}, pool.Options{Log: slog.New(slog.DiscardHandler), Now: router.Nanotime})
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
		defer stop()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

// bucketsOf renders a histogram and reads the counts back, by upper bound.
func bucketsOf(t *testing.T, h *backend.Histogram) map[float64]uint64 {
	t.Helper()
	ch := make(chan prometheus.Metric, 1)
	sender{ch}.histogram(poolWait, h.Buckets[:], h.Sum, pool.Key{Database: "d\xff", User: "u", Server: "s"})
	var m dto.Metric
	if err := (<-ch).Write(&m); err != nil {
		t.Fatal(err)
	}
	if m.Histogram.GetSampleCount() != h.Count() || math.Abs(m.Histogram.GetSampleSum()-h.Sum.Seconds()) > 1e-9 {
		t.Errorf("count %d, sum %v", m.Histogram.GetSampleCount(), m.Histogram.GetSampleSum())
	}
	if l := m.Label[0].GetValue(); l != `d\xff` {
		t.Errorf("a label that is not UTF-8: %q", l)
	}
	out := make(map[float64]uint64)
	for _, b := range m.Histogram.Bucket {
		out[b.GetUpperBound()] = b.GetCumulativeCount()
	}
	return out
}

func TestTraceCounts(t *testing.T) {
	m := New(Options{Pools: emptySet(t)})
	tr := m.Trace()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 1000 {
				tr.Login(i%4 != 0)
			}
		})
	}
	wg.Wait()
	if ok, failed := m.loginsOK.value(), m.loginsFailed.value(); ok != 6000 || failed != 2000 {
		t.Errorf("logins: %d and %d", ok, failed)
	}
}

func TestTraceAllocates(t *testing.T) {
	m := New(Options{Pools: emptySet(t)})
	tr := m.Trace()
	if n := testing.AllocsPerRun(100, func() {
		tr.Login(true)
	}); n != 0 {
		t.Errorf("%v allocations for each call", n)
	}
}
