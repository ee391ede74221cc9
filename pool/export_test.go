package pool

import "fmt"

// ConsistencyCheck compares counters with the lists that they count.
func (s *Set) ConsistencyCheck() error {
	used := make(map[capKey]int)
	for _, p := range append(s.list(), s.retired...) {
		if err := p.consistent(used); err != nil {
			return fmt.Errorf("pool %v: %w", p.Key, err)
		}
	}
	s.caps.mu.Lock()
	defer s.caps.mu.Unlock()
	for k, n := range s.caps.used {
		if used[k] != n {
			return fmt.Errorf("caps: %v counts %d, pools have %d", k, n, used[k])
		}
	}
	if len(s.caps.starved) > 0 != s.caps.hungry.Load() {
		return fmt.Errorf("caps: %d starved, hungry %v", len(s.caps.starved), s.caps.hungry.Load())
	}
	return nil
}

func (p *Pool) consistent(used map[capKey]int) error {
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
	d := p.demandLocked()
	used[d.db] += len(p.all) + p.dialing
	used[d.user] += len(p.all) + p.dialing
	switch {
	case states[stateLent] != p.lent:
		return fmt.Errorf("%d lent, counted %d", states[stateLent], p.lent)
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
	case p.load.Load() < int64(p.lent):
		return fmt.Errorf("load %d, lent %d", p.load.Load(), p.lent)
	}
	return nil
}

// Counts returns how many connections are idle, lent and being opened.
func (p *Pool) Counts() (idle, lent, dialing int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle), p.lent, p.dialing
}
