package pool

import "fmt"

// ConsistencyCheck compares counters with the lists that they count.
func (s *Set) ConsistencyCheck() error {
	have := make(map[limitKey]tally)
	for _, p := range append(s.list(), s.retired...) {
		if err := p.consistent(have); err != nil {
			return fmt.Errorf("pool %v: %w", p.Key, err)
		}
	}
	c := s.caps
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, want := range have {
		if n := c.tallies[k]; n.used < want.used || n.leaving < want.leaving || n.leaving > n.used {
			return fmt.Errorf("caps: %v counts %+v, pools have %+v", k, n, want)
		}
	}
	held := 0
	for x := range c.holders {
		held += x.held
	}
	for k, n := range c.tallies {
		if k.kind == ofHost {
			held -= n.used - n.leaving
		}
	}
	if held != 0 {
		return fmt.Errorf("caps: shares hold %d connections more than are counted", held)
	}
	if (len(c.starved) > 0 || c.excess) != c.hungry.Load() {
		return fmt.Errorf("caps: %d starved, excess %v, hungry %v", len(c.starved), c.excess, c.hungry.Load())
	}
	return nil
}

func (p *Pool) consistent(have map[limitKey]tally) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	states := make(map[connState]int)
	for _, m := range p.all {
		states[m.state]++
	}
	waiting := 0
	for w := p.first; w != nil; w = w.next {
		if waiting++; !w.queued || w.next != nil && w.next.prev != w {
			return fmt.Errorf("waiter %d is not linked well", waiting)
		}
	}
	for _, k := range p.share.keys {
		t := have[k]
		t.used += len(p.all) + p.dialing
		t.leaving += p.closing
		have[k] = t
	}
	switch {
	case states[stateLent] != len(p.out):
		return fmt.Errorf("%d lent, counted %d", states[stateLent], len(p.out))
	case states[stateIdle] != len(p.idle):
		return fmt.Errorf("%d idle, %d on the stack", states[stateIdle], len(p.idle))
	case states[stateClosing] != p.closing:
		return fmt.Errorf("%d closing, counted %d", states[stateClosing], p.closing)
	case waiting != p.waiting:
		return fmt.Errorf("%d waiters, counted %d", waiting, p.waiting)
	case p.closed && (waiting > 0 || len(p.idle) > 0):
		return fmt.Errorf("closed with %d waiters and %d idle", waiting, len(p.idle))
	case len(p.idle) > 0 && waiting > 0 && !p.paused:
		return fmt.Errorf("%d idle while %d wait", len(p.idle), waiting)
	case p.load.Load() < int64(len(p.out)):
		return fmt.Errorf("load %d, lent %d", p.load.Load(), len(p.out))
	}
	return nil
}

// Counts returns how many connections are idle, lent and being opened.
func (p *Pool) Counts() (idle, lent, dialing int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle), len(p.out), p.dialing
}
