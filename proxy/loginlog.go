package proxy

import "sync/atomic"

// loginLog bounds the lines of the log that clients can cause who have not logged in:
// anybody can fail as often as the network carries. The sweeper begins each second
// anew.
type loginLog struct {
	lines, dropped atomic.Int64
}

// maxLoginLines is how many of them there are in a second.
const maxLoginLines = 50

// allow reports whether one more line may be written.
func (l *loginLog) allow() bool {
	if l.lines.Add(1) <= maxLoginLines {
		return true
	}
	l.dropped.Add(1)
	return false
}

// renew begins a new second, and says how many lines the last one has cost.
func (l *loginLog) renew() (dropped int64) {
	l.lines.Store(0)
	return l.dropped.Swap(0)
}
