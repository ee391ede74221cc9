package backend

import (
	"math/bits"
	"time"
)

// Histogram counts durations in buckets that double: bucket i holds those below
// 2^i microseconds that are not in a lower one; the last holds all the rest.
type Histogram struct {
	Buckets [28]uint64
	Sum     time.Duration
}

// Add counts d.
func (h *Histogram) Add(d time.Duration) {
	us := uint64(max(d, 0) / time.Microsecond)
	h.Buckets[min(bits.Len64(us), len(h.Buckets)-1)]++
	h.Sum += d
}

// Merge adds the counts of o.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.Buckets {
		h.Buckets[i] += n
	}
	h.Sum += o.Sum
}

// Count returns how many durations were added.
func (h *Histogram) Count() (n uint64) {
	for _, b := range h.Buckets {
		n += b
	}
	return n
}

// Bound returns the upper bound of bucket i.
func Bound(i int) time.Duration { return time.Microsecond << i }

// Counters is what a server connection has done, in PgBouncer's words. Bytes
// received are those from clients, sent those to clients.
type Counters struct {
	Xacts, Queries             uint64
	Received, Sent             uint64
	XactTime, QueryTime        Histogram
	ClientParses, ServerParses uint64
	Binds                      uint64
	Pins                       uint64
	Audits, AuditFindings      uint64
	Adopted                    uint64    // settings that were set or reset for another client
	Shared                     uint64    // statements that were sent behind those of others
	ShareWait                  Histogram // how long those stood there
}

// Merge adds the counts of o.
func (c *Counters) Merge(o *Counters) {
	c.Xacts += o.Xacts
	c.Queries += o.Queries
	c.Received += o.Received
	c.Sent += o.Sent
	c.XactTime.Merge(&o.XactTime)
	c.QueryTime.Merge(&o.QueryTime)
	c.ClientParses += o.ClientParses
	c.ServerParses += o.ServerParses
	c.Binds += o.Binds
	c.Pins += o.Pins
	c.Audits += o.Audits
	c.Adopted += o.Adopted
	c.Shared += o.Shared
	c.ShareWait.Merge(&o.ShareWait)
	c.AuditFindings += o.AuditFindings
}
