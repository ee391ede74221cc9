package monitor

import (
	"math/rand/v2"
	"strconv"
	"time"

	"pgproxy/config"
	"pgproxy/router"
)

// When a replica that answers gets no reads all the same, or fewer.

const (
	flapWindow  = time.Minute      // a replica that goes down again within this time is banned for longer
	maxBan      = 30 * time.Second //
	rampStart   = 0.1              // share of its reads that a replica which has come back begins with
	rampWeights = 100              // weights are multiplied by it while one ramps up
)

// banLocked is told that a server has gone down. One that goes down again and
// again is left alone for longer each time.
func (e *entry) banLocked(s *server, now time.Time) {
	st := &s.state
	if st.shown != router.RoleReplica {
		return
	}
	if now.Sub(st.wentDown) > flapWindow {
		st.flaps = 0
	}
	st.wentDown = now
	st.flaps++
	if st.flaps == 1 {
		return // the next good check ends it
	}
	d := min(e.interval<<min(st.flaps-1, 10), maxBan)
	st.banned = now.Add(d/2 + rand.N(d/2+1))
	text := "down " + decimal(uint32(st.flaps)) + " times in short order, no reads for " + st.banned.Sub(now).Round(time.Millisecond).String()
	e.noteLocked(s, "ban", text, func() { e.log.Warn("replica is banned", "server", s.addr, "reason", text) })
}

// bannedLocked reports whether a replica that answers must not be used yet.
func (st *state) bannedLocked(now time.Time) bool {
	return st.up && st.shown == router.RoleReplica && now.Before(st.banned)
}

// bansLocked reports whether bans count: not where nothing would be left to read
// from.
func (e *entry) bansLocked(now time.Time) bool {
	primary, free := false, false
	for _, s := range e.servers {
		st := &s.state
		switch {
		case !st.up:
		case st.shown == router.RolePrimary:
			primary = true
		case st.shown == router.RoleReplica && !st.bannedLocked(now):
			free = true
		}
	}
	return free || primary && e.reads != config.PrimaryReadsNever
}

// lateLocked works out whether a replica lags more than is allowed.
func (e *entry) lateLocked(s *server, lag time.Duration) {
	st := &s.state
	was := st.late
	bytes := e.lagBytesLocked(s)
	st.late = e.limit.exceeded(lag, bytes, was)
	switch {
	case st.late && !was:
		text := "lags " + lag.Round(time.Millisecond).String() + " and " + strconv.FormatInt(bytes, 10) + " bytes: no reads"
		e.noteLocked(s, "lag", text, func() { e.log.Warn("replica lags too much", "server", s.addr, "lag", lag, "bytes", bytes) })
	case was && !st.late:
		e.noteLocked(s, "lag", "has caught up", func() { e.log.Info("replica has caught up", "server", s.addr, "lag", lag) })
	}
}

// rampLocked returns the share of its weight that a server gets at the moment.
func (e *entry) rampLocked(st *state, now time.Time) float64 {
	since := st.returned
	if st.banned.After(since) {
		since = st.banned
	}
	if e.ramp <= 0 || st.returned.IsZero() || st.shown != router.RoleReplica {
		return 1
	}
	share := float64(now.Sub(since)) / float64(e.ramp)
	if share >= 1 {
		st.returned = time.Time{}
		return 1
	}
	return max(share, rampStart)
}
