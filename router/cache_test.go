package router

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// sumFor is a hash whose home in the table is chosen.
func sumFor(home uint64, n int) sum { return sum(uint64(n)<<32 | home&0xffffffff) }

func addTo(c *cache, h sum, shape string) *Plan {
	p, _ := c.add(h, []byte(shape), &Plan{Reason: Reason(shape)})
	return p
}

// checkCache looks at what must hold between two calls of a cache.
func checkCache(t *testing.T, c *cache) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var size int64
	for i, e := range c.ring {
		size += e.size
		if e.place != i {
			t.Fatalf("entry %q thinks it is at %d, not %d", e.shape, e.place, i)
		}
		if c.probe(e.sum, []byte(e.shape)) != e {
			t.Fatalf("entry %q cannot be found", e.shape)
		}
	}
	used := 0
	for i := range c.slots {
		if c.slots[i].Load() != nil {
			used++
		}
	}
	if used != len(c.ring) {
		t.Fatalf("%d slots for %d entries", used, len(c.ring))
	}
	if size != c.size || c.size > c.maxSize || len(c.ring) > c.maxCount {
		t.Fatalf("%d entries of %d bytes, counted %d; bounds %d and %d",
			len(c.ring), size, c.size, c.maxCount, c.maxSize)
	}
}

func TestCacheTellsClashesApart(t *testing.T) {
	c := newCache(100, 1<<20)
	h := sumFor(7, 1)
	a, b := addTo(c, h, "a"), addTo(c, h, "b")
	if c.find(h, []byte("a")) != a || c.find(h, []byte("b")) != b || c.find(h, []byte("c")) != nil {
		t.Error("shapes of one hash are mixed up")
	}
	if addTo(c, h, "a") != a {
		t.Error("the second to add a shape does not get the first one's plan")
	}
	checkCache(t, c)
}

// TestCacheRemoval fills runs that wrap around the end of the table, and
// removes from their beginning, middle and end.
func TestCacheRemoval(t *testing.T) {
	for first := range 8 {
		c := newCache(8, 1<<20) // 16 slots
		for i := range 8 {
			addTo(c, sumFor(uint64(13+i/3), i), fmt.Sprint(i))
		}
		for i := range 8 {
			c.mu.Lock()
			c.removeLocked(c.ring[(first*i)%len(c.ring)])
			c.mu.Unlock()
			checkCache(t, c)
		}
		if c.size != 0 || len(c.ring) != 0 {
			t.Fatalf("%d bytes left", c.size)
		}
	}
}

func TestCacheBounds(t *testing.T) {
	c := newCache(10, 1<<20)
	for i := range 100 {
		addTo(c, sumFor(uint64(i*31), i), fmt.Sprint(i))
		checkCache(t, c)
	}
	var s Stats
	c.stats(&s)
	if s.Entries != 10 || s.Evictions != 90 {
		t.Errorf("by entries: %+v", s)
	}

	c = newCache(1000, 64<<10)
	long := strings.Repeat("x", 200)
	for i := range 200 {
		addTo(c, sumFor(uint64(i*31), i), fmt.Sprint(i, long))
		checkCache(t, c)
	}
	s = Stats{}
	c.stats(&s)
	if s.Bytes > 64<<10 || s.Bytes < 63<<10 || s.Evictions != uint64(200-s.Entries) {
		t.Errorf("by bytes: %+v", s)
	}
	if _, kept := c.add(sumFor(1, 1), []byte(strings.Repeat("y", 2000)), new(Plan)); kept {
		t.Error("a shape of more than a 64th of all room was remembered")
	}
	if c := newCache(1<<40, 1<<20); len(c.slots) > 1<<14 {
		t.Errorf("%d slots for 1 MiB", len(c.slots))
	}
}

// TestCacheKeepsWhatIsUsed: a shape that is hit between two rounds of the hand
// stays, whatever else streams through.
func TestCacheKeepsWhatIsUsed(t *testing.T) {
	c := newCache(10, 1<<20)
	hot := sumFor(5, -1)
	addTo(c, hot, "hot")
	for i := range 1000 {
		if c.find(hot, []byte("hot")) == nil {
			t.Fatalf("forgotten after %d others", i)
		}
		addTo(c, sumFor(uint64(i), i), fmt.Sprint(i))
	}
	checkCache(t, c)
	// With all of them hot, one must go all the same.
	for _, e := range c.ring {
		e.hits.Add(1)
	}
	addTo(c, sumFor(3, 5000), "new")
	checkCache(t, c)
}

func TestCacheStatsSurviveEviction(t *testing.T) {
	r := New(Options{MaxShapes: 4})
	for i := range 50 {
		sql := []byte(fmt.Sprintf("SELECT a%d", i))
		r.Plan(sql)
		r.Plan(sql)
	}
	s := r.Stats()
	if s.Hits != 50 || s.Misses != 50 || s.Entries != 4 || s.Evictions != 46 || s.Uncached != 0 || s.Panics != 0 {
		t.Errorf("%+v", s)
	}
}

func TestCacheConcurrently(t *testing.T) {
	r := New(Options{MaxShapes: 32})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				n := (i*7 + g*13) % 48
				want := fmt.Sprintf("function not known to be pure: f%d", n)
				p := r.Plan([]byte(fmt.Sprintf("SELECT f%d(%d)", n, i)))
				if string(p.Reason) != want {
					t.Errorf("got the plan %q, want %q", p.Reason, want)
					return
				}
				if i%100 == 0 {
					r.Shapes()
					r.Stats()
				}
			}
		})
	}
	wg.Wait()
	checkCache(t, r.cache)
	s := r.Stats()
	// A reader that has found an entry counts its hit a moment later: one that is
	// evicted in that moment takes the hit along.
	if lost := 8*500 - int(s.Hits+s.Misses); lost < 0 || lost > int(s.Evictions) || s.Panics != 0 {
		t.Errorf("%+v", s)
	}
}
