package monitor

import (
	"time"

	"pgproxy/config"
)

// lagLimit is how far behind a replica may be that gets reads. 0 is no limit.
type lagLimit struct {
	age   time.Duration
	bytes int64
}

func lagLimitOf(db *config.Database) lagLimit {
	return lagLimit{db.MaxReplicaLag, db.MaxReplicaLagBytes}
}

// exceeded reports whether a replica is too far behind. One that was must come
// within half of the limits again, so that it does not come and go with each
// check.
func (l lagLimit) exceeded(age time.Duration, bytes int64, was bool) bool {
	if was {
		l.age, l.bytes = l.age/2, l.bytes/2
		if l.age == 0 && l.bytes == 0 {
			return false // there are none any more
		}
	}
	return l.age > 0 && age > l.age || l.bytes > 0 && bytes > l.bytes
}

// lagBytesLocked returns how much WAL of the primary a replica has not replayed,
// by what is known of both; 0 if their positions cannot be compared.
func (e *entry) lagBytesLocked(s *server) int64 {
	a := s.state.newest
	if a == nil || !a.positioned || !e.comparableLocked(a) {
		return 0
	}
	return max(int64(e.past.newest().insert)-int64(a.replay), 0)
}
