package monitor

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestHistory(t *testing.T) {
	var h history
	if h.covered(1000) != 0 {
		t.Error("an empty history covers something")
	}
	h.add(100, 100, 10)
	h.add(200, 150, 20)
	h.add(200, 150, 30)
	h.add(200, 200, 40)
	h.add(300, 290, 50)
	for _, c := range []struct {
		replay  uint64
		covered int64
		lag     time.Duration // at 1000
		whole   bool
	}{
		{99, 0, 990, false},
		{100, 10, 980, true},
		{149, 10, 980, true},
		{150, 10, 960, true},
		{199, 10, 960, true},
		{200, 40, 950, true},
		{289, 40, 950, true},
		{290, 40, 0, true}, // the rest is not flushed, so no replica can have it
		{300, 50, 0, true},
		{9999, 50, 0, true},
	} {
		if got := h.covered(c.replay); got != c.covered {
			t.Errorf("covered(%d) = %d, want %d", c.replay, got, c.covered)
		}
		if lag, whole := h.lag(c.replay, 1000); lag != c.lag || whole != c.whole {
			t.Errorf("lag(%d) = %d, %v, want %d, %v", c.replay, lag, whole, c.lag, c.whole)
		}
	}
}

func TestHistoryOfAnIdlePrimaryIsOneSample(t *testing.T) {
	var h history
	for stamp := range int64(5000) {
		h.add(100, 100, stamp+1)
	}
	if len(h.samples) != 1 || h.covered(100) != 5000 {
		t.Errorf("%d samples, covered %d", len(h.samples), h.covered(100))
	}
}

func TestHistoryStartsAnewWhenThePrimaryGoesBack(t *testing.T) {
	var h history
	h.add(100, 100, 10)
	h.add(200, 200, 20)
	h.add(150, 150, 30)
	if got := h.covered(150); got != 30 {
		t.Errorf("covered %d, want 30", got)
	}
	if got := h.covered(149); got != 0 {
		t.Errorf("covered %d by samples that are worth nothing", got)
	}
}

// A thinned history never promises more than the whole one, and its lags are not
// shorter.
func TestHistoryThinned(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var thinned, whole history
	pos, stamp := uint64(1), int64(1)
	for range 20 * maxSamples {
		pos += 1 + r.Uint64N(100)
		stamp += 1 + r.Int64N(1000)
		flush := pos - r.Uint64N(min(pos, 50))
		thinned.add(pos, flush, stamp)
		newest := whole.newest()
		whole.samples = append(whole.samples, sample{pos, max(min(flush, pos), newest.flush), stamp, stamp})
		if len(thinned.samples) > maxSamples {
			t.Fatalf("%d samples", len(thinned.samples))
		}
	}
	for range 10000 {
		at := r.Uint64N(pos + 10)
		if got, most := thinned.covered(at), whole.covered(at); got > most {
			t.Fatalf("covered(%d) = %d, of all samples %d", at, got, most)
		}
		got, _ := thinned.lag(at, stamp)
		least, _ := whole.lag(at, stamp)
		if got < least {
			t.Fatalf("lag(%d) = %d, of all samples %d", at, got, least)
		}
	}
	if got, want := thinned.covered(pos), stamp; got != want {
		t.Errorf("the newest sample is gone: %d, want %d", got, want)
	}
}
