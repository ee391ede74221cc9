package router

import (
	"fmt"
	"strconv"
	"strings"
)

// Position is a place in the WAL of a cluster. Those of two timelines cannot be
// compared. The zero one is none.
type Position struct {
	Timeline uint32
	LSN      uint64
}

// String writes the timeline in decimal, a slash, and the position as pg_lsn
// does: "1/16/B374D848".
func (p Position) String() string {
	return fmt.Sprintf("%d/%X/%X", p.Timeline, p.LSN>>32, uint32(p.LSN))
}

// ParsePosition reads what String has written.
func ParsePosition(text string) (Position, bool) {
	timeline, lsn, ok := strings.Cut(text, "/")
	high, low, ok2 := strings.Cut(lsn, "/")
	t, err := strconv.ParseUint(timeline, 10, 32)
	h, err2 := strconv.ParseUint(high, 16, 32)
	l, err3 := strconv.ParseUint(low, 16, 32)
	if !ok || !ok2 || err != nil || err2 != nil || err3 != nil {
		return Position{}, false
	}
	return Position{uint32(t), h<<32 | l}, true
}

// reachedBy reports whether a replica is known to have replayed the position.
func (p Position) reachedBy(s *Server) bool {
	return p.Timeline != 0 && s.Covered != 0 && s.Timeline == p.Timeline && s.LSN >= p.LSN
}

// Known is the newest position of the primary that the picture has, and the
// stamp before which every acknowledged write lies in front of it. The zero
// values are none.
func (t *Topology) Known() (p Position, stamp int64) {
	for i := range t.Servers {
		if s := &t.Servers[i]; s.Role == RolePrimary && s.Up && s.Covered > stamp && s.Timeline != 0 {
			p, stamp = Position{s.Timeline, s.LSN}, s.Covered
		}
	}
	return p, stamp
}
