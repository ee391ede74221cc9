package backend

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/netio"
	"pgproxy/wire"
)

// Sink is the client's end of a server connection.
type Sink interface {
	// Lock takes the right to write to the client until Unlock. The connection's
	// mutex is taken under it, never the other way round.
	Lock()
	Unlock()
	// Reply writes to the client, with Lock held, and blocks while the client
	// does not read. p is valid only during the call. After an error nothing
	// more is written.
	Reply(p []byte) error
	// TryReply is Reply, but returns what could not be written at once. All of that
	// must be written with Reply before Unlock.
	TryReply(p []byte) (rest []byte)
	// Reported is told of a ParameterStatus that answers the client's own
	// statement; login says that the value is what a fresh login has. The strings
	// are copies. Called under the connection's mutex.
	Reported(name, value string, login bool)
	// Undone is told that the Parse or Close that has this number in Owed.Change
	// has not happened: it failed, or stood behind an error. Called under the
	// connection's mutex.
	Undone(change uint64)
	// Answered is told, before the ReadyForQuery of its own is relayed, when that
	// came from the server, and whether something that may have written was
	// acknowledged with it. Called under the connection's mutex.
	Answered(at int64, wrote bool)
	// Failing is told that a Trial of the client's has failed: Failed will follow.
	// Called under the connection's mutex.
	Failing()
	// Failed is told that a Trial is to be run again. Nothing of it is owed any
	// more. Called under the connection's mutex.
	Failed(f *Failure)
	// Signalled is told, before the reply is relayed, that a statement of the
	// client's has named a process that the server does not have; superuser says
	// that the client is one. Called without any lock.
	Signalled(signal Signal, pid uint32, superuser bool)
	// Lost is told, once, that the server connection has died, or was closed, while
	// lent to this client; no reply begins after it. fatal is set when the server's
	// own FATAL error has been relayed; err is a *LostError.
	Lost(err error, fatal bool)
}

// Follower is a Sink whose session's state follows it.
type Follower interface {
	// Followed is told which settings the session has that are not those of a
	// login: as the server says, and without those whose values are a login's all
	// the same. Called under the connection's mutex.
	Followed(raw, normal *Settings)
	// TooManyPinned is told that the client has left something in its session that
	// pins the connection, of which the owner has too many. Called under the
	// connection's mutex.
	TooManyPinned()
	// Who tells the client's user, application and address. Called under the
	// connection's mutex.
	Who() (user, application, addr string)
}

// Owner is the pool that a connection belongs to. The calls come without the
// connection's mutex held, but for Dying, Pin, Unpin and Served, which take no lock.
type Owner interface {
	// Dying is told that the server has ended a connection, or said that it is about
	// to, before anybody runs elsewhere what was on it. Discard follows.
	Dying()
	Release(c *Conn)            // clean, and lent to nobody
	Room(c *Conn)               // lent, with Seats that somebody may Join
	Discard(c *Conn, err error) // closed or to be closed; lent to nobody
	Reset(c *Conn)              // lent to nobody, and clean after Exec("DISCARD ALL")
	// Pin counts one more connection that state pins to its client. It reports
	// false if there are as many as may be, unless forced.
	Pin(forced bool) bool
	// Unpin counts one less.
	Unpin()
	// Served is told what Pace.Took has said of a statement. Like Pin it is called with
	// the connection's mutex held, and takes no lock.
	Served(slow int)
}

// ErrGone is returned by Hold and Send when the connection has died.
var ErrGone = errors.New("server connection is gone")

// ErrUnsent is returned by the first Send of a lease, and by any before which nothing
// was open or owed, when the connection has died: nothing of it has reached the server,
// and Sink.Lost is not called.
var ErrUnsent = fmt.Errorf("%w before anything was sent", ErrGone)

// Limits bound what a connection does for its clients.
type Limits struct {
	MaxPrepared int           // statements kept on the server; 0: no limit
	AuditRatio  int           // one in so many leases ends with an audit; 0: none
	CancelWait  time.Duration // how long a cancel may take
	MaxMessage  int           // longest message from the server in bytes
}

// Conn is one server connection.
type Conn struct {
	// Set at construction.
	Addr    string // as configured
	PID     uint32
	secret  []byte
	network string
	dialed  string
	restore string // connect_query
	connect func(ctx context.Context, network, addr string) (net.Conn, error)
	io      *netio.Conn
	owner   Owner
	limits  Limits
	now     func() int64 // monotonic nanoseconds
	Since   time.Time
	born    int64
	done    chan struct{}  // closed when the goroutine has ended
	tails   sync.WaitGroup // goroutines of finishLater
	standby atomic.Bool    // the server is in recovery, as it says itself (in_hot_standby, from PostgreSQL 14)

	// Place is the owner's own note of the connection: the owner alone reads and
	// writes it, under its own lock.
	Place any

	// Owned by the goroutine in Loop, see reply.go.
	out     netio.Gather
	rest    int    // bytes left of a message whose fate is decided
	forward bool   // that fate
	spill   []byte // for what is made of earlier

	// Written by the goroutine in Loop, under mu.
	earlier []earlier // of a scan: what goes out first, to other clients
	writeTo Sink      // who the rest of a scan is written to

	// Held while writing to the server.
	writing sync.Mutex

	// Guarded by mu.
	mu        sync.Mutex
	q         queue
	prep      prepared
	status    wire.TxStatus
	holder    Sink
	try       trial
	writer    uint64 // the client whose nextval currval and lastval may tell of; 0: nobody's
	sending   bool   // the holder is in the middle of a message, or between Hold and the end of Send
	relayTo   Sink   // who gets the rest of a message that is half relayed
	relaying  bool   // replies that the queue has let go are being written to clients
	share     sharing
	pace      Pace // of the holder's statement, if it is one alone
	batch     bool // extended-protocol messages without their Sync yet
	pin       pin
	ask       Ask       // what the server is to be asked before the connection is lent again
	names     []string  // of settings to ask for
	answer    *response // of the question that is owed
	question  []byte    // what askLocked has prepared for sendQuestion
	asked     int64     // when the last question was sent
	audited   int64     // when it was last audited
	leases    int       // since the last audit
	finding   *Finding  // of that
	read      *Settings
	statement fmt.Stringer      // the last statement of a client
	wrote     bool              // this lease ran what is not proved a read
	ends      bool              // something was sent, and is not all answered, that may end a transaction block
	lost      error             // set once: the connection has died
	last      error             // what the server has said in a FATAL error; nil if nothing
	fatal     bool              // the holder has been told that
	fatalTo   Sink              // who it was
	early     bool              // the server's last words were there before what was sent last
	spare     bool              // it has ended, which was nothing to its holder: what is sent now was never sent
	stray     bool              // it was severed while the server was at work
	params    map[string]string // as last reported
	login     map[string]string // as reported at login
	home      *Settings         // what connect_query has set
	failed    *wire.Error       // first error of a swallowed message since State was asked
	errors    uint64            // ErrorResponses seen
	dropped   bool              // the server has dropped all prepared statements (DISCARD ALL, DEALLOCATE ALL)
	quiet     chan struct{}     // closed when nothing is owed any more
	moved     chan struct{}     // closed when replies have come
	cancels   int               // cancel requests under way
	parked    bool              // detached, but to be released only when cancels is 0
	late      bool              // a cancel request may still be on its way: not to be lent again
	unsure    bool              // a setting was refused: what the server has is not what applied says
	dirty     bool              // what a statement has left in the session is not known
	forsaken  Sink              // the holder, if it is not to wait for anything any more
	started   int64             // when the oldest statement that is owed was sent
	xact      int64             // when the transaction began; 0 none
	requested int64             // when last lent; 0 never
	fresh     bool              // nothing has been sent since: requested is the time for it
	user      Sink              // to whom it was lent last
	before    int64             // when the one before user gave it back
	counts    Counters

	// Atomic: set under mu, or by the holder's goroutine before it sends.
	released atomic.Int64 // when last released
	applied  atomic.Pointer[Settings]
	seats    atomic.Int32
	unnamed  atomic.Uint64 // which Parse of an unnamed statement the server has, or one of the values in inject.go
}

// HadLastWords reports whether s has been told a FATAL error of the server's:
// nothing may follow that.
func (c *Conn) HadLastWords(s Sink) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fatalTo == s && s != nil
}

// CheckReleased returns what should not be, of a connection that its owner is given by
// Release: nil if nothing ties it to a client. It is for tests.
func (c *Conn) CheckReleased() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for what, wrong := range map[string]bool{
		"it is lent":                          c.holder != nil,
		"replies are owed":                    !c.q.settled() || c.q.skipping,
		"a transaction is open":               c.status != wire.TxIdle,
		"a message is half sent":              c.sending,
		"a batch is open":                     c.batch,
		"half a message was relayed":          c.relayTo != nil,
		"an answer is held back":              c.try.on || len(c.try.held) > 0 || c.try.failed != nil,
		"it is pinned":                        c.pin.why != 0,
		"a question is open":                  c.ask != 0 || c.answer != nil || len(c.names) > 0,
		"a cancel request is under way":       c.cancels != 0 || c.late,
		"it is not clean":                     c.dirty || c.unsure,
		"it has ended":                        c.lost != nil || c.last != nil,
		"somebody waits for its end of quiet": c.quiet != nil,
	} {
		if wrong {
			return fmt.Errorf("a connection was released, and %s", what)
		}
	}
	return nil
}

// Settled reports whether the connection is lent to s and owes it nothing.
func (c *Conn) Settled(s Sink) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.holder == s && !c.owingLocked()
}

// Halfway reports whether s has been written a part of a message whose rest has
// not come: nothing else may be written to it then.
func (c *Conn) Halfway(s Sink) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.relayTo == s
}

// Reported returns the value of a setting that the server tells of by itself, as
// it was last told; ok is false for others.
func (c *Conn) Reported(name string) (value string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, v := range c.params {
		if strings.EqualFold(n, name) {
			return v, true
		}
	}
	return "", false
}

// Forsake ends what the goroutine of s waits for at this connection, for good:
// the client is to leave.
func (c *Conn) Forsake(s Sink) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.withdrawLocked(s):
		return
	case c.leavesLocked(s):
		c.leftLocked(s)
		c.wakeMovedLocked()
		return
	case c.holder != s && c.share.joiner != s:
		return
	}
	c.forsaken = s
	c.wakeQuietLocked()
	c.wakeMovedLocked()
	if c.sending {
		_ = c.io.NetConn().SetWriteDeadline(time.Unix(1, 0))
	}
}

// Home reports whether connect_query has changed settings, which RESET takes back.
func (c *Conn) Home() bool { return c.home != nil }

// HeldBy reports whether the connection is lent to s, be it with others.
func (c *Conn) HeldBy(s Sink) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.involvesLocked(s)
}

// ErrStale is returned by Lend for a connection that has been idle for too long.
var ErrStale = errors.New("server connection has been idle for long")

// Lend gives a released connection to a client, unless it has been idle for more
// than most (0 is no limit). The client must follow with Send: until then nothing
// detaches it. now is the time if the caller has just read the clock, else 0.
func (c *Conn) Lend(s Sink, now int64, most time.Duration) error {
	if now == 0 {
		now = c.now()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.lost; err != nil || c.last != nil {
		return fmt.Errorf("%w: %w", ErrGone, errors.Join(err, c.last))
	}
	if c.holder != nil || !c.q.settled() || c.status != wire.TxIdle || c.pin.why != 0 {
		panic("backend: lending a connection that is not clean")
	}
	if most > 0 && now-c.released.Load() > int64(most) {
		return ErrStale
	}
	if c.user != s {
		c.user, c.before = s, c.released.Load()
	}
	c.holder, c.sending, c.wrote, c.ends = s, true, false, false
	c.share.depth, c.pace = 0, nil
	c.leases++
	c.requested, c.fresh = now, true
	c.forsaken, c.failed, c.dropped = nil, nil, false
	return nil
}

// Hold keeps a connection that is still lent to s from being detached until the
// next Send, and reports whether it is. It is how a client's goroutine goes on
// with the connection that it has. Whatever is sent next ends a Trial; while one
// has failed there is nothing to go on with until Failed was called.
func (c *Conn) Hold(s Sink) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaitTurnLocked(s)
	c.awaitAnswerLocked(s)
	if c.holder != s || c.lost != nil || c.try.failed != nil {
		return false
	}
	if c.share.depth != 0 { // more is to follow
		c.share.depth = 0
		c.countSeatsLocked()
	}
	if c.last != nil && c.doneLocked() {
		c.holder = nil // it is on its way out
		return false
	}
	c.try.on = c.try.on && c.batch
	c.sending = true
	return true
}

// Parcel is what one Send carries.
type Parcel struct {
	Owed          []Owed // one for each message in Bytes that is answered, in order
	Bytes         []byte // valid until Send returns
	More          bool   // the last message is not complete yet
	Open          bool   // extended-protocol messages have been sent whose Sync has not
	Wrote         bool   // something in it is not proved a read
	Ends          bool   // something in it may end a transaction block
	Dirty         bool   // something in it may leave in the session what nobody knows
	Trial         Trial
	Share         int    // it is one whole statement, a Trial that reads, outside a transaction, that so many clients may share the connection for; 0: it is not
	Pace          Pace   // of the statement, where it is one alone; else nil
	At            int64  // when it came, on the Dialer's clock; 0: not known
	Client        uint64 // number of the client that sends
	Pin           Pin    // why the connection must stay with the client from here on; nothing of PinState
	Binds, Parses int

	// Ask is what the server must be asked when the connection comes free, and
	// Names which settings it may not show by itself.
	Ask       Ask
	Names     []string
	Statement fmt.Stringer // the last statement in it, by its shape; nil: as before
}

// Send notes the replies that will be owed and writes p. The connection must be
// lent to the calling client and kept with Lend or Hold.
func (c *Conn) Send(p *Parcel) error {
	c.mu.Lock()
	joins := c.share.joiner != nil
	if joins && !c.enterLocked(p) {
		why := errors.Join(c.lost, c.last)
		to := c.stepBackLocked()
		c.mu.Unlock()
		c.handBack(to)
		if why == nil {
			why = errBarred
		}
		return fmt.Errorf("%w: %w", ErrUnsent, why)
	}
	if c.lost != nil || c.last != nil && (c.fresh || c.spare) {
		c.sending = false
		err, gone := errors.Join(c.lost, c.last), ErrGone
		if c.fresh || c.spare {
			gone = ErrUnsent
		}
		c.mu.Unlock()
		return fmt.Errorf("%w: %w", gone, err)
	}
	if len(p.Owed) > 0 && c.q.empty() {
		now := c.requested
		if !c.fresh {
			now = c.now()
		}
		c.started = now
		if c.xact == 0 {
			c.xact = now
		}
	}
	if follows := joins && !c.q.empty(); !follows {
		c.try.send(p, c.q.settled() && (c.status == wire.TxIdle || p.Trial.Commit != nil))
		c.share.depth = 0
		if c.try.on && p.shareable() {
			c.share.depth = p.Share
		}
		c.pace = p.Pace
		if p.Statement != nil {
			c.statement = p.Statement
		}
	}
	for i := range p.Owed {
		if o := &p.Owed[i]; o.Kind == Parse && !o.Own {
			c.counts.ServerParses++
		}
		c.q.push(p.Owed[i])
	}
	c.fresh = false
	c.batch = p.Open
	c.sending = true // until all is written: the next holder must not overtake it
	c.wrote = c.wrote || p.Wrote
	c.ends = c.ends || p.Ends
	if p.Wrote {
		c.writer = p.Client
	}
	c.dirty = c.dirty || p.Dirty
	c.pin.why |= p.Pin
	if p.Ask != 0 {
		c.ask |= p.Ask
		c.names = append(c.names, p.Names...)
	}
	c.counts.Received += uint64(len(p.Bytes))
	c.counts.Binds += uint64(p.Binds)
	c.counts.ClientParses += uint64(p.Parses)
	c.mu.Unlock()

	c.writing.Lock()
	err := c.io.Write(p.Bytes)
	c.writing.Unlock()
	if err != nil {
		return c.writeFailed(err)
	}
	c.mu.Lock()
	c.sending = p.More
	to := c.detachLocked(0) // where no reply will come, or all have come already
	c.countSeatsLocked()
	c.mu.Unlock()
	c.handBack(to)
	if c.Seats() > 0 {
		c.owner.Room(c)
	}
	return nil
}

// writeFailed leaves the end of the connection to its goroutine, which may
// still find the server's last words, and bounds how long that takes.
func (c *Conn) writeFailed(err error) error {
	_ = c.io.NetConn().SetReadDeadline(time.Now().Add(time.Second))
	return fmt.Errorf("%w: write to %s: %w", ErrGone, c.Addr, err)
}

// whereTo says what becomes of a connection that may have come free.
type whereTo uint8

const (
	toNobody  whereTo = iota // it has not come free, or waits for the end of a cancel request
	toOwner                  // it is clean
	toDiscard                // it is not to be lent again
	toReset                  // it is to be cleaned first
	toServer                 // it stays where it is: a question is to be sent
)

// detachLocked takes the connection from its holder if nothing ties the two
// together any more. Its caller must then call handBack, without the mutex. now
// is the time if it is known, else 0.
func (c *Conn) detachLocked(now int64) whereTo {
	if !c.atRestLocked() {
		return toNobody
	}
	if c.sending {
		if c.share.joiner != nil {
			c.holder = nil // whoever joins it has the connection alone
		}
		return toNobody
	}
	if c.cancels > 0 && c.ask != 0 {
		return toNobody // the cancel must not hit the question
	}
	if c.cancels == 0 && c.dueLocked(now) {
		return c.askLocked()
	}
	if c.pin.why != 0 {
		return toNobody
	}
	if now == 0 {
		now = c.now()
	}
	c.holder, c.share.depth = nil, 0
	c.countSeatsLocked()
	c.q.compact()
	c.released.Store(now)
	if c.cancels > 0 {
		c.parked = true
		return toNobody
	}
	return c.freeLocked()
}

// atRestLocked reports whether nothing is under way between the connection and
// its client, and nothing but askable reasons ties the two together.
func (c *Conn) atRestLocked() bool {
	return c.holder != nil && c.lost == nil && c.last == nil && (!c.sending || c.share.joiner != nil) && !c.batch &&
		!c.owingLocked() && c.pin.why&^(askable|PinSetting) == 0 && c.status == wire.TxIdle && c.q.settled()
}

// doneLocked reports whether the connection would come free by itself, or would
// have if the server had not ended it.
func (c *Conn) doneLocked() bool { return !c.sending && c.spareLocked() }

// spareLocked reports whether the end of the connection is nothing to its holder:
// all that it has sent is answered, also where its Send has not returned yet, and
// what it is about to send has gone nowhere.
func (c *Conn) spareLocked() bool {
	return !c.batch && c.pin.why == 0 && c.ask == 0 && c.status == wire.TxIdle && (c.q.settled() || c.auditingLocked())
}

// freeLocked says what is to become of a connection that nobody holds.
func (c *Conn) freeLocked() whereTo {
	switch {
	case c.late || c.unsure:
		return toDiscard
	case c.dirty:
		return toReset
	}
	return toOwner
}

// owingLocked reports whether a client has not been written all that the server
// has said or will say.
func (c *Conn) owingLocked() bool { return !c.q.empty() || c.relaying || c.relayTo != nil }

// handBack gives the owner a connection that has come free.
func (c *Conn) handBack(to whereTo) {
	switch to {
	case toServer:
		c.sendQuestion()
	case toOwner:
		c.owner.Release(c)
	case toReset:
		c.owner.Reset(c)
	case toDiscard:
		c.mu.Lock()
		err := errUnsure
		if c.late {
			err = errLate
		}
		c.mu.Unlock()
		c.owner.Discard(c, err)
	}
}

var (
	errLate   = errors.New("a cancel request may still be on its way")
	errUnsure = errors.New("the server has refused a setting, or has not been sent what was noted")
	errBarred = errors.New("nobody may stand behind what is there")
)

// Quiet waits until nothing is owed to s and all replies have been written to it.
// It returns at once if the connection is not lent to s any more, or forsaken.
func (c *Conn) Quiet(s Sink) {
	c.mu.Lock()
	c.awaitTurnLocked(s)
	if c.holder != s || c.forsaken == s || c.lost != nil || !c.owingLocked() {
		c.mu.Unlock()
		return
	}
	ch := c.quietLocked()
	c.mu.Unlock()
	<-ch
}

// Rest is Quiet, but returns false, while something is owed, where the server
// reads a COPY: nothing would be answered before the client goes on.
func (c *Conn) Rest(s Sink) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaitTurnLocked(s)
	for c.holder == s && c.forsaken != s && c.lost == nil && c.owingLocked() {
		if c.q.copyIn {
			return false
		}
		c.waitLocked()
	}
	return true
}

// quietLocked returns a channel that is closed when nothing is owed any more.
func (c *Conn) quietLocked() <-chan struct{} {
	if c.quiet == nil {
		c.quiet = make(chan struct{})
	}
	return c.quiet
}

// wakeQuietLocked ends Quiet.
func (c *Conn) wakeQuietLocked() {
	if c.quiet != nil {
		close(c.quiet)
		c.quiet = nil
	}
}

// State is what the client's goroutine may have to know of its connection.
type State struct {
	Status  wire.TxStatus
	Owing   bool        // something is still owed or being written: Status is not the last word
	Errors  uint64      // ErrorResponses so far
	Failed  *wire.Error // the first error in answer to a swallowed message since the last call
	Dropped bool        // the server has dropped all prepared statements since the last call
	Read    *Settings   // the answer to AppendRead
}

// State returns a copy and forgets Failed, Dropped and Read.
func (c *Conn) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := State{Status: c.status, Owing: !c.q.settled() || c.owingLocked(), Errors: c.errors, Failed: c.failed, Dropped: c.dropped, Read: c.read}
	c.failed, c.dropped, c.read = nil, false, nil
	return s
}

// Close says goodbye and closes the connection. Its owner is not told; whoever
// it is lent to loses it.
func (c *Conn) Close() {
	c.mu.Lock()
	if c.lost == nil {
		c.lost = net.ErrClosed
	}
	holder, fatal, lost := c.holder, c.fatal, c.lostLocked(net.ErrClosed)
	c.holder = nil
	c.loseLocked()
	c.mu.Unlock()
	nc := c.io.NetConn()
	// Lost goes first: closing waits for our goroutine, which may be writing to a
	// client that does not read.
	if holder != nil {
		holder.Lost(lost, fatal)
	}
	_ = nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	if c.writing.TryLock() {
		err := c.io.Write(wire.AppendTerminate(nil))
		c.writing.Unlock()
		if err == nil {
			c.awaitEnd(goodbye)
		}
	}
	_ = nc.Close()
}

// goodbye is how long Close waits for the server to close its end. Until it has, it
// counts the connection as one of its max_connections.
const goodbye = time.Second

// awaitEnd waits until the connection's goroutine has ended.
func (c *Conn) awaitEnd(most time.Duration) {
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-c.done:
	case <-t.C:
	}
}

// Wait returns when the connection's goroutine has ended.
func (c *Conn) Wait() {
	<-c.done
	c.tails.Wait()
}

// Probe is to be called each second or so; it finds out about servers that have
// closed the connection unseen.
func (c *Conn) Probe() {
	if c.io.Probe() {
		c.io.Wake()
	}
}

// Alive reports whether the connection has not been found dead or closed.
func (c *Conn) Alive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost == nil
}
