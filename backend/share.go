package backend

import (
	"fmt"
	"sync"
	"time"

	"pgproxy/wire"
)

// Sharing by the statement. While a connection is lent to a client for one
// statement that is proved to be a harmless read, and is complete, others may send
// such statements behind it: the server then finds its next one in its socket.
//
// The holder is always the client whose reply comes next. Behind it stands the
// line, in the order of the queue. When the holder's ReadyForQuery has come the
// first of the line becomes the holder; the one before is leaving until all has
// been written to it, and its goroutine waits for that.
//
// Nobody is to wait for others for long: those in the line are sent away, to run
// their statements elsewhere, where the holder takes longer than maxHeldUp, asks
// for a cancel, or goes. All in the line are statements that may be run twice.
// What they were owed is swallowed (Owed.Gone), and while the server is at work for that
// nobody is the holder.

// maxHeldUp is how long the holder may keep a line waiting.
const maxHeldUp = 20 * time.Millisecond

// Pace is told how long a server took for a statement, and says how many times longer
// that is than for the quickest of its kind, in sixteenths. It takes no lock.
type Pace interface {
	Took(d time.Duration) (slow int)
}

// follower is a client in the line.
type follower struct {
	sink      Sink
	try       trial
	pace      Pace
	statement fmt.Stringer
	since     int64 // when it was sent
}

// sharing is what belongs to a shared connection. Its owner is Conn, under Conn.mu.
type sharing struct {
	depth   int        // how many may share what the holder has sent; 0: nobody
	joiner  Sink       // who is about to send behind the others; Conn.sending is set
	line    []follower // in the order of the queue
	leaving []Sink     // their statements are complete, but not all is written to them
	watch   *time.Timer
	watched bool // watch is set
	ahead   int  // how many statements had come to their end by then
	ended   int  // statements that have come to their end
	gone    int  // statements in the queue that were given up
	behind  Sink // the holder, if the one before it is still written to
}

// Seats returns how many more clients could join, as far as is known: Join decides.
// It takes no lock.
func (c *Conn) Seats() int { return int(c.seats.Load()) }

// countSeatsLocked brings Seats up to date.
func (c *Conn) countSeatsLocked() {
	n := int32(0)
	if c.share.depth > 0 && c.cancels == 0 && c.lost == nil && !c.q.empty() {
		n = int32(max(0, c.share.depth-1-len(c.share.line)))
	}
	if c.seats.Load() != n {
		c.seats.Store(n)
	}
}

// Join lets s send one statement behind those of others, if the connection is lent
// for nothing but such statements and has these settings. s must follow with Send, of
// a Parcel with Share; any other is held up until the connection is its own.
func (c *Conn) Join(s Sink, want *Settings) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.share
	if h.depth == 0 || c.sending || len(h.line) >= h.depth-1 || c.lost != nil || c.last != nil || c.holder == nil ||
		c.cancels > 0 || c.late || c.unsure || c.dirty || c.pin.why != 0 || c.ask != 0 || c.batch || c.status != wire.TxIdle ||
		c.q.empty() || c.q.copyIn || c.q.skipping || c.q.doubt > 0 || c.try.failed != nil || c.involvesLocked(s) {
		return false
	}
	if have := c.applied.Load(); have != want && !have.Equal(want) {
		return false
	}
	h.joiner, c.sending = s, true
	c.leases++
	return true
}

// involvesLocked reports whether anything of s is on the connection, or on its way
// to s.
func (c *Conn) involvesLocked(s Sink) bool {
	return c.holder == s || c.share.joiner == s || c.followsLocked(s) >= 0 || c.leavesLocked(s)
}

// followsLocked returns the place of s in the line; -1 if it is not there.
func (c *Conn) followsLocked(s Sink) int {
	for i := range c.share.line {
		if c.share.line[i].sink == s {
			return i
		}
	}
	return -1
}

func (c *Conn) leavesLocked(s Sink) bool {
	for _, x := range c.share.leaving {
		if x == s {
			return true
		}
	}
	return false
}

// leftLocked notes that all has been written to s.
func (c *Conn) leftLocked(s Sink) {
	l := c.share.leaving
	for i, x := range l {
		if x == s {
			last := len(l) - 1
			l[i], l[last] = l[last], nil
			c.share.leaving = l[:last]
			return
		}
	}
}

// awaitTurnLocked waits until s, if it shares the connection, has had its answer, or
// has been sent away.
func (c *Conn) awaitTurnLocked(s Sink) {
	for c.lost == nil && c.forsaken != s &&
		(c.holder == s && (len(c.share.line) > 0 || c.share.joiner != nil || c.share.gone > 0) || c.holder != s && (c.followsLocked(s) >= 0 || c.leavesLocked(s))) {
		c.waitLocked()
	}
}

// waitLocked waits for replies. The mutex is not held meanwhile.
func (c *Conn) waitLocked() {
	if c.moved == nil {
		c.moved = make(chan struct{})
	}
	moved := c.moved
	c.mu.Unlock()
	<-moved
	c.mu.Lock()
}

// enterLocked gives the one that has joined its place, before the queue is told of
// what it sends. A Parcel that is not to be shared waits for an empty queue. It reports
// false if the connection has died, a cancel request is under way, the client is to
// leave, or those in front take long: then nothing is to be sent, see stepBackLocked.
func (c *Conn) enterLocked(p *Parcel) bool {
	h := &c.share
	s := h.joiner
	if !p.shareable() && !c.awaitEmptyLocked(s) || c.barredLocked() {
		return false
	}
	h.joiner = nil
	c.wakeMovedLocked()
	if c.q.empty() { // those in front are done: whoever is still written to is leaving
		if c.holder != nil && c.relaying && (c.writeTo == c.holder || c.hasEarlierLocked(c.holder)) {
			c.leaveLocked(c.holder)
		}
		c.holder = s
		if c.relaying {
			h.behind = s
			c.watchLocked()
		}
		return true
	}
	n := len(h.line)
	if n < cap(h.line) {
		h.line = h.line[:n+1]
	} else {
		h.line = append(h.line, follower{})
	}
	f := &h.line[n]
	f.sink, f.pace, f.statement, f.since = s, p.Pace, p.Statement, p.At
	if f.since == 0 {
		f.since = c.now()
	}
	f.try.send(p, true)
	c.counts.Shared++
	c.watchLocked()
	return true
}

// barredLocked reports whether nobody who has joined may send any more: the connection
// is dead or about to be closed, or a cancel request might hit what is sent.
func (c *Conn) barredLocked() bool { return c.lost != nil || c.last != nil || c.late || c.cancels > 0 }

// awaitEmptyLocked waits until s, who has joined, would be alone on the connection. It
// reports false if that does not come, or takes long.
func (c *Conn) awaitEmptyLocked(s Sink) bool {
	h := &c.share
	h.depth = 0
	c.countSeatsLocked()
	empty := func() bool { return len(h.line) == 0 && !c.owingLocked() && c.q.settled() }
	if empty() {
		return true
	}
	over := false
	t := time.AfterFunc(maxHeldUp, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		over = true
		c.wakeMovedLocked()
	})
	defer t.Stop()
	for !empty() {
		if over || c.barredLocked() || c.forsaken == s {
			return false
		}
		c.waitLocked()
	}
	return c.forsaken != s
}

// stepBackLocked undoes the Join of one who has sent nothing. What was noted of that
// (prepared statements, the unnamed one) is not so: the connection is not to be lent
// again. Its caller must call handBack, without the mutex.
func (c *Conn) stepBackLocked() whereTo {
	h := &c.share
	h.joiner, h.depth, c.sending = nil, 0, false
	c.unsure = true
	if c.holder == nil && c.q.settled() {
		c.holder = nobody
	}
	c.countSeatsLocked()
	c.wakeMovedLocked()
	return c.detachLocked(0)
}

// shareable reports whether others may stand in front of what is sent, or behind it.
func (p *Parcel) shareable() bool {
	return p.Share > 0 && !p.More && !p.Open && p.Trial.First && p.Trial.Reads && !p.Trial.Block && len(p.Trial.Bytes) > 0 && len(p.Trial.Bytes) <= MaxTrial
}

// endsTurnLocked reports whether the holder has had all of its answer, while there is
// something else in the queue. swallowed says that the ReadyForQuery that has come was
// not its own.
func (c *Conn) endsTurnLocked(swallowed bool) bool {
	front := c.q.at(0)
	if front.Gone {
		return c.holder != nil && c.holder != nobody
	}
	// Settings come in front of the holder's own statement, each with a Sync.
	return len(c.share.line) > 0 && front.Sink != c.holder && (!swallowed || !front.Own)
}

// leaveLocked notes that a client whose statement is complete is still written to.
func (c *Conn) leaveLocked(s Sink) {
	if !c.leavesLocked(s) {
		c.share.leaving = append(c.share.leaving, s)
	}
}

// hasEarlierLocked reports whether a part of the scan at hand is for s.
func (c *Conn) hasEarlierLocked(s Sink) bool {
	for i := range c.earlier {
		if c.earlier[i].sink == s {
			return true
		}
	}
	return false
}

// advanceLocked ends the holder's turn: its last reply has come.
func (c *Conn) advanceLocked(s *scan) {
	h := &c.share
	if s.sink == c.holder && c.out.Len() > 0 || c.hasEarlierLocked(c.holder) {
		c.leaveLocked(c.holder)
	}
	if !c.q.empty() && c.q.at(0).Gone {
		c.holder, c.pace = nobody, nil
		c.to(nobody, s)
		return
	}
	next := h.line[0]
	used := c.try // for its memory
	h.remove(0, used)
	c.holder, c.try, c.pace = next.sink, next.try, next.pace
	if next.statement != nil {
		c.statement = next.statement
	}
	c.counts.ShareWait.Add(time.Duration(s.now - next.since))
	c.countSeatsLocked()
	c.to(next.sink, s) // what is held back of its answer is not to be mixed with the one before
}

// dismissLocked sends away all in the line.
func (c *Conn) dismissLocked(cause Cause) {
	h := &c.share
	for i := len(h.line) - 1; i >= 0; i-- {
		f := &h.line[i]
		failure := &Failure{Cause: cause, Sent: f.try.sent}
		f.try.sent = nil
		c.forgoLocked(f.sink)
		f.sink.Failing()
		f.sink.Failed(failure)
		f.sink = nil
	}
	if len(h.line) > 0 {
		h.line = h.line[:0]
		c.wakeMovedLocked()
	}
	c.countSeatsLocked()
}

// sendAwayLocked is dismissLocked for the holder, whose answer has not begun.
func (c *Conn) sendAwayLocked() {
	t := &c.try
	s, failure := c.holder, &Failure{Cause: CauseHeldUp, Sent: t.sent}
	t.on, t.sent, t.held = false, nil, t.held[:0]
	c.forgoLocked(s)
	c.holder, c.pace = nobody, nil
	s.Failing()
	s.Failed(failure)
	c.wakeMovedLocked()
}

// forgoLocked has all swallowed that is owed to s.
func (c *Conn) forgoLocked(s Sink) {
	for i := range c.q.n {
		if o := c.q.at(i); o.Sink == s {
			if o.Kind.ready() {
				c.share.gone++
			}
			o.Do, o.Own, o.Gone, o.Sink, o.Change, o.Told, o.Note, o.Signal = Swallow, true, true, nil, 0, nil, nil, 0
		}
	}
}

// remove takes the one at i out of the line. The free place behind the others keeps the
// memory of used for who comes next.
func (h *sharing) remove(i int, used trial) {
	n := i + copy(h.line[i:], h.line[i+1:])
	h.line[n] = follower{try: trial{sent: used.sent, held: used.held[:0]}}
	h.line = h.line[:n]
}

// withdrawLocked takes s out of the line, who does not want its answer any more.
func (c *Conn) withdrawLocked(s Sink) bool {
	i := c.followsLocked(s)
	if i < 0 {
		return false
	}
	c.forgoLocked(s)
	c.share.remove(i, c.share.line[i].try)
	c.countSeatsLocked()
	c.wakeMovedLocked()
	return true
}

// watchLocked sees to it that the line does not wait for long.
func (c *Conn) watchLocked() {
	h := &c.share
	if h.watched {
		return
	}
	h.watched, h.ahead = true, h.ended
	if h.watch == nil {
		h.watch = time.AfterFunc(maxHeldUp, c.look)
	} else {
		h.watch.Reset(maxHeldUp)
	}
}

// look sends the line away if nothing has come to its end since it was last set.
func (c *Conn) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.share
	h.watched = false
	behind := h.behind != nil && c.holder == h.behind && c.try.on
	if c.lost != nil || len(h.line) == 0 && !behind {
		return
	}
	if h.ended == h.ahead {
		h.depth = 0 // nobody else is to join
		c.dismissLocked(CauseHeldUp)
		if behind { // our goroutine waits for a client that does not read
			c.sendAwayLocked()
		}
		return
	}
	c.watchLocked()
}

// finishLater writes the rest of an answer to a client that does not read, so that
// nobody else waits for it: in a goroutine that Wait waits for. The client's lock is
// held; it is given back then.
func (c *Conn) finishLater(s Sink, rest []byte) {
	rest = append([]byte(nil), rest...)
	c.tails.Add(1)
	go func() {
		defer c.tails.Done()
		_ = s.Reply(rest)
		s.Unlock()
		c.mu.Lock()
		c.leftLocked(s)
		c.movedLocked()
		c.mu.Unlock()
	}()
}

// nobody holds a connection whose server is at work for what was given up.
var nobody Sink = new(noClient)

// noClient is a Sink that hears nothing.
type noClient struct{ sync.Mutex }

func (*noClient) Reply([]byte) error             { return nil }
func (*noClient) TryReply([]byte) []byte         { return nil }
func (*noClient) Reported(string, string, bool)  {}
func (*noClient) Undone(uint64)                  {}
func (*noClient) Answered(int64, bool)           {}
func (*noClient) Failing()                       {}
func (*noClient) Failed(*Failure)                {}
func (*noClient) Signalled(Signal, uint32, bool) {}
func (*noClient) Lost(error, bool)               {}
