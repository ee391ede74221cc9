package router

import (
	"sync/atomic"
	"time"
)

// Pace is how long servers take for the statements of one shape. Anybody may use
// it: one of two measurements at the same moment may be lost.
type Pace struct {
	mean  atomic.Int64 // running mean in nanoseconds
	floor atomic.Int64 // how long the quickest take, in nanoseconds
	count atomic.Int32 // measurements, up to enough
}

// enough is how many measurements a mean is believed after; each counts for one part in
// so many of it. The floor follows those below it as fast, and those above it slower by
// drift: it is near the third percentile.
const (
	enough = 8
	drift  = 256
)

// Took notes one measurement, and returns how many times longer than the quickest it
// is, in sixteenths.
func (p *Pace) Took(d time.Duration) (slow int) {
	n := p.count.Load()
	if n < enough {
		n++
		p.count.Store(n)
	}
	mean, floor := p.mean.Load(), p.floor.Load()
	p.mean.Store(mean + (int64(d)-mean)/int64(n))
	switch over := int64(d) - floor; {
	case floor == 0:
		floor = int64(d)
	case over < 0:
		floor += over / enough
	default:
		floor += min(over, floor) / drift
	}
	p.floor.Store(floor)
	return int(min(16*int64(d)/max(floor, 1), 1<<16))
}

// Within reports whether the mean is known and at most d.
func (p *Pace) Within(d time.Duration) bool {
	return p.count.Load() == enough && p.mean.Load() <= int64(d)
}

// Pace returns the pace of the statement's shape on servers of this role.
func (p *Plan) Pace(role Role) *Pace {
	d := p.Draft()
	if role == RoleReplica {
		return &d.paces[1]
	}
	return &d.paces[0]
}

// Shareable reports whether the statement may be sent to a server behind those of
// others, and be run twice: a single read that leaves nothing. What only a catalog can
// decide must have been proved by one.
func (p *Plan) Shareable() bool {
	return p.Class == ClassRead && p.Effects == 0 && p.Bad == nil && p.Proxy == nil && p.Listens == nil &&
		p.Use == PreparedNone && p.open == nil && !p.Explain && !p.Unread && p.Refused() == ""
}
