package monitor

import (
	"sync"
	"time"
)

// maxEvents is how many events are remembered.
const maxEvents = 1000

// Event is a change that the monitor has seen, or made.
type Event struct {
	At       time.Time
	Database string // entry in the configuration
	Server   string // "" if it concerns none
	Kind     string // up, down, role, timeline, odd, ban, lag, joined, left, halted, switchover, patroni, addresses
	Text     string
}

// events are the last ones, oldest first.
type events struct {
	mu   sync.Mutex
	ring []Event
	n    int // ever
}

func (v *events) add(e Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.ring) < maxEvents {
		v.ring = append(v.ring, e)
	} else {
		v.ring[v.n%maxEvents] = e
	}
	v.n++
}

func (v *events) list() []Event {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.n <= maxEvents {
		return append([]Event(nil), v.ring...)
	}
	at := v.n % maxEvents
	return append(append([]Event(nil), v.ring[at:]...), v.ring[:at]...)
}

// Events returns the last events, oldest first.
func (m *Monitor) Events() []Event { return m.events.list() }

// note is an event that is to be remembered and logged when entry.mu is released.
type note struct {
	event Event
	log   func()
}

// noteLocked remembers an event of a server, or of none, and what to log of it.
func (e *entry) noteLocked(s *server, kind, text string, log func()) {
	v := Event{At: time.Now(), Database: e.name, Kind: kind, Text: text}
	if s != nil {
		v.Server = s.addr
	}
	e.notes = append(e.notes, note{v, log})
}
