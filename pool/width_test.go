package pool

import "testing"

// TestWidth: over more connections than a server has processors for its statements only
// take longer; then fewer are enough. Where they take no longer there may be more again.
func TestWidth(t *testing.T) {
	for _, v := range []struct {
		name             string
		processors, busy int // of the server; connections that have work, if they may
		least, most      int // that are used in the end
	}{
		{"two processors", 2, 16, 3, 5},
		{"many processors", 64, 16, 16, 1 << 30},
		{"little work", 2, 2, 2, 1 << 30},
		{"one processor", 1, 16, 2, 4},
	} {
		t.Run(v.name, func(t *testing.T) {
			var p Pool
			for range 200 * widthStep {
				n := min(v.busy, p.width.now())
				p.leased.Store(int64(n))
				p.Served(16 * max(n, v.processors) / v.processors)
			}
			if n := p.width.now(); n < v.least || n > v.most {
				t.Errorf("width %d, want %d to %d", n, v.least, v.most)
			}
			for range 200 * widthStep { // the load goes away, the statements are quick
				p.leased.Store(int64(min(v.busy, p.width.now())))
				p.Served(16)
			}
			if n := p.width.now(); n <= v.busy && n < 1<<30 {
				t.Errorf("width %d, though more do no harm", n)
			}
		})
	}
}

// TestWidthOfSlowReads: a few that wait for the disk do not narrow it.
func TestWidthOfSlowReads(t *testing.T) {
	var p Pool
	for i := range 200 * widthStep {
		p.leased.Store(int64(min(16, p.width.now())))
		slow := 17
		if i%20 == 0 {
			slow = 16 * 1000
		}
		p.Served(slow)
	}
	if n := p.width.now(); n < 10 {
		t.Errorf("width %d", n)
	}
}
