package router

import (
	"encoding/binary"
	"encoding/hex"
	"sync"
	"sync/atomic"
	"time"
)

// entry is one remembered shape.
type entry struct {
	// Set at construction.
	sum     sum
	shape   string
	plan    *Plan
	stamped time.Time
	size    int64 // bytes, by estimate

	// Guarded by cache.mu.
	seen  uint64 // hits when the hand last came by
	place int    // in cache.ring

	// Atomic.
	hits atomic.Uint64
}

// entryOverhead is what an entry takes beside its texts: itself, its Plan, its
// slots in table and ring.
const entryOverhead = 320

// cache holds shapes in an open-addressing table. Readers take no lock: they
// see each slot's entry or nil, entries never change, and a reader that meets
// a removal half done can at worst miss, which costs one parse. Writers come
// only after a parse and share one mutex.
//
// What goes first is chosen by a clock: a hand walks the ring of entries and
// spares, once, each that was hit since it last came by.
type cache struct {
	// Set at construction.
	slots    []atomic.Pointer[entry] // a power of two, at most half full
	mask     uint64
	maxSize  int64
	maxCount int

	// Guarded by mu.
	mu        sync.Mutex
	ring      []*entry
	hand      int
	size      int64
	evictions uint64
	goneHits  uint64 // hits of entries that are gone
}

func newCache(count int, size int64) *cache {
	count = int(max(1, min(int64(count), size/entryOverhead))) // no more fit
	slots := 16
	for slots < 2*count {
		slots *= 2
	}
	return &cache{
		slots:    make([]atomic.Pointer[entry], slots),
		mask:     uint64(slots - 1),
		maxSize:  size,
		maxCount: count,
	}
}

// find returns the plan of a shape and counts a hit, or nil.
func (c *cache) find(h sum, shape []byte) *Plan {
	if e := c.probe(h, shape); e != nil {
		e.hits.Add(1)
		return e.plan
	}
	return nil
}

// probe compares the whole shape: no clash of hashes gives a wrong plan.
func (c *cache) probe(h sum, shape []byte) *entry {
	for i, n := uint64(h)&c.mask, 0; n < len(c.slots); i, n = (i+1)&c.mask, n+1 {
		e := c.slots[i].Load()
		if e == nil {
			return nil
		}
		if e.sum == h && e.shape == string(shape) {
			return e
		}
	}
	return nil
}

// add remembers a plan, and returns the one that is in force: an earlier one
// if somebody was quicker. A shape too big for the bounds is not remembered,
// and kept is false.
func (c *cache) add(h sum, shape []byte, plan *Plan) (p *Plan, kept bool) {
	e := &entry{
		sum: h, shape: string(shape), plan: plan, stamped: time.Now(),
		size: int64(len(shape)+len(plan.Reason)+len(plan.Target)+len(plan.Tag)) + entryOverhead,
	}
	if plan.open != nil {
		e.size += int64(plan.open.size() + maxProofs*proofSize)
	}
	if e.size > c.maxSize/64 {
		return plan, false
	}
	plan.shape = e.shape
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.probe(h, shape); old != nil {
		return old.plan, true
	}
	for len(c.ring) > 0 && (len(c.ring) >= c.maxCount || c.size+e.size > c.maxSize) {
		c.evictLocked()
	}
	i := uint64(h) & c.mask
	for c.slots[i].Load() != nil {
		i = (i + 1) & c.mask
	}
	c.slots[i].Store(e)
	e.place = len(c.ring)
	c.ring = append(c.ring, e)
	c.size += e.size
	return plan, true
}

// evictLocked forgets the next entry that was not hit since the hand last came
// by, or the one under the hand when a whole round finds none.
func (c *cache) evictLocked() {
	for range len(c.ring) {
		c.hand %= len(c.ring)
		e := c.ring[c.hand]
		hits := e.hits.Load()
		if hits == e.seen {
			break
		}
		e.seen = hits
		c.hand++
	}
	c.hand %= len(c.ring)
	c.removeLocked(c.ring[c.hand])
}

// removeLocked takes e out of ring and table, and moves the entries behind it
// in the table up so that none is cut off from its place.
func (c *cache) removeLocked(e *entry) {
	last := c.ring[len(c.ring)-1]
	c.ring[e.place] = last
	last.place = e.place
	c.ring[len(c.ring)-1] = nil
	c.ring = c.ring[:len(c.ring)-1]
	c.size -= e.size
	c.evictions++
	c.goneHits += e.hits.Load()

	hole := uint64(e.sum) & c.mask
	for c.slots[hole].Load() != e {
		hole = (hole + 1) & c.mask
	}
	for i := (hole + 1) & c.mask; ; i = (i + 1) & c.mask {
		next := c.slots[i].Load()
		if next == nil {
			break
		}
		// next may move to the hole unless its home lies behind the hole.
		if home := uint64(next.sum) & c.mask; (i-home)&c.mask >= (i-hole)&c.mask {
			c.slots[hole].Store(next)
			hole = i
		}
	}
	c.slots[hole].Store(nil)
}

// list copies what is remembered.
func (c *cache) list() []ShapeStat {
	c.mu.Lock()
	entries := append([]*entry(nil), c.ring...)
	c.mu.Unlock()
	stats := make([]ShapeStat, 0, len(entries))
	for _, e := range entries {
		var raw [8]byte
		binary.BigEndian.PutUint64(raw[:], uint64(e.sum))
		class, reason := e.plan.now()
		var proofs []ProofStat
		if e.plan.open != nil {
			proofs = e.plan.open.stats()
		}
		stats = append(stats, ShapeStat{
			Shape: display(e.shape), Hash: hex.EncodeToString(raw[:]),
			Class: class, Reason: reason, Hits: e.hits.Load(), Stamped: e.stamped, Proofs: proofs,
		})
	}
	return stats
}

// stats fills in what the cache knows.
func (c *cache) stats(s *Stats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Hits = c.goneHits
	for _, e := range c.ring {
		s.Hits += e.hits.Load()
	}
	s.Evictions, s.Entries, s.Bytes = c.evictions, len(c.ring), c.size
}
