package monitor

import (
	"sort"
	"time"
)

// maxSamples bounds a history.
const maxSamples = 1024

// sample is what the primary said about its WAL, once or several times in a row.
type sample struct {
	insert, flush uint64 // positions; flush is at most insert
	first, last   int64  // stamps from before the first and the last time it was asked
}

// history holds the samples of one primary, oldest first. Positions never go
// back in it.
type history struct {
	samples []sample
}

// add notes what the primary said to a question that was asked after stamp. If
// it has gone back, which a crash without fsync of its last records can cause,
// older samples are worth nothing.
func (h *history) add(insert, flush uint64, stamp int64) {
	flush = min(flush, insert)
	if n := len(h.samples); n > 0 {
		newest := &h.samples[n-1]
		switch {
		case insert < newest.insert:
			h.clear()
		case insert == newest.insert && flush <= newest.flush:
			newest.last = stamp
			return
		default:
			flush = max(flush, newest.flush)
		}
	}
	if len(h.samples) == maxSamples {
		h.thin()
	}
	h.samples = append(h.samples, sample{insert, flush, stamp, stamp})
}

func (h *history) clear() { h.samples = h.samples[:0] }

// thin makes one of each two samples in the older half. What comes out is never
// too good: the higher positions with the lower first stamp.
func (h *history) thin() {
	half := len(h.samples) / 2
	kept := h.samples[:0]
	for i := 0; i+1 < half; i += 2 {
		merged := h.samples[i+1]
		merged.first = h.samples[i].first
		kept = append(kept, merged)
	}
	h.samples = append(kept, h.samples[half&^1:]...)
}

// covered returns the stamp of the newest sample that a replica at this position
// has replayed, 0 if none.
func (h *history) covered(replay uint64) int64 {
	n := sort.Search(len(h.samples), func(i int) bool { return h.samples[i].insert > replay })
	if n == 0 {
		return 0
	}
	return h.samples[n-1].last
}

// lag returns the age of the oldest sample that a replica at this position lacks,
// 0 if none. Whole is false if it lacks every one: its lag may then be older than
// the history.
func (h *history) lag(replay uint64, now int64) (age time.Duration, whole bool) {
	n := sort.Search(len(h.samples), func(i int) bool { return h.samples[i].flush > replay })
	if n == len(h.samples) {
		return 0, true
	}
	return time.Duration(max(now-h.samples[n].first, 0)), n > 0
}

// newest returns the last sample; the zero one if there is none.
func (h *history) newest() sample {
	if len(h.samples) == 0 {
		return sample{}
	}
	return h.samples[len(h.samples)-1]
}
