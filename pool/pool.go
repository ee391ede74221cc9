package pool

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/backend"
	"pgproxy/config"
)

// Errors that callers branch on.
var (
	ErrClosed      = errors.New("pool is closed")          // by a reload or shutdown: ask the Set again
	ErrUnreachable = errors.New("server is not reachable") // try another server, or wait for this one
	ErrWaitTimeout = errors.New("query_wait_timeout")
	ErrStandby     = fmt.Errorf("%w: it is in recovery", ErrUnreachable)
	ErrMoved       = errors.New("server is not for use") // fenced, or down: choose again
)

// Key names a pool. Database is the name that clients ask for, User the role
// that logs in to the server, Server its address.
type Key struct{ Database, User, Server string }

// Limits of one pool.
type Limits struct {
	Size, Min    int // most and fewest server connections; of Size 0: no limit
	Reserve      int // beyond Size, for waiters of more than ReserveAfter
	ReserveAfter time.Duration
	RoundRobin   bool // lend the coldest connection
	WaitTimeout  time.Duration
	IdleTimeout  time.Duration // 0: never
	Lifetime     time.Duration // 0: for ever
	CheckDelay   time.Duration // idle longer than this: checked before it is lent
	CheckQuery   string        // "off": never checked
	LoginRetry   time.Duration // least time between failed logins
	CheckTimeout time.Duration
	MaxPinned    int // connections that session state may pin to their clients
}

// Waiter is a client's place in a queue. It belongs to one client's goroutine,
// which uses it for one Acquire at a time. Its zero value is ready.
type Waiter struct {
	Primary bool          // the server must not be in recovery
	Patient bool          // waits until the server accepts logins, if it refuses them in its own words
	Prefer  *backend.Conn // this one, if it is idle
	Share   bool          // a connection will do that others have sent such statements to, see Sharer

	ch         chan result
	pool       atomic.Pointer[Pool] // whose queue it stands in
	prev, next *Waiter              // guarded by the pool's mutex
	queued     bool                 // guarded by the pool's mutex
	since      int64                // guarded by the pool's mutex
}

type result struct {
	conn *backend.Conn
	room *backend.Conn // in place of conn: this one may be joined
	at   int64         // when it came free
	err  error
}

// Pool lends the connections of one Key.
type Pool struct {
	// Set at construction.
	Key    Key
	Mode   config.PoolMode
	set    *Set
	server config.Server
	load   *atomic.Int64 // leases of all pools of this server
	share  *share        // of the limits that pools share
	beside *outside      // the share of connections of Dial
	sent   *outside      // of Replicate

	queued     atomic.Int64 // is waiting
	leased     atomic.Int64 // how many of out there are
	width      width        // over how many connections single reads spread
	pinned     atomic.Int64 // connections that session state pins to their clients
	maxPinned  atomic.Int64
	checkDelay atomic.Int64 // idle longer than this in ns: checked before it is lent; 0: never
	wary       atomic.Int64 // when the server has last ended a connection, see doubtful; 0: never, or long ago

	// Guarded by mu.
	mu          sync.Mutex
	entry       string // Name of the database's entry in the configuration
	fenced      bool   // nothing is lent, see Set.Fence
	login       backend.Login
	replaced    config.Secret // the password before that of login, see SetPassword
	dialer      *backend.Dialer
	limits      Limits
	all         map[*backend.Conn]*member
	idle        []*backend.Conn          // the last is the warmest
	apart       map[*backend.Conn]bool   // connections of Dial, which are in neither
	streams     map[*backend.Stream]bool // of Replicate
	first, last *Waiter
	waiting     int
	dialing     int
	out         []*backend.Conn // those that are lent
	seat        int             // where to look next in out
	closing     int             // of all
	paused      bool
	closed      bool
	generation  int // connections of an earlier one are closed when they come back
	failures    int
	retryAt     int64
	retry       *time.Timer
	lastErr     error
	params      map[string]string // what a fresh login reports
	drained     chan struct{}     // closed when nothing is lent any more; see Pause
	used        int64             // of a pool without connections: when it last had or wanted one

	// Totals, guarded by mu.
	gone     backend.Counters // of connections that are no more
	assigned uint64
	wait     backend.Histogram
	opened   uint64
	failed   uint64
}

// member is what the pool knows of one connection. Guarded by Pool.mu.
type member struct {
	generation int
	retire     bool
	state      connState
	at         int // place in Pool.out
}

// memberOf returns what the connection's pool has noted of it; nil before the
// pool has it. Its pool's mutex must be held.
func memberOf(c *backend.Conn) *member {
	m, _ := c.Place.(*member)
	return m
}

type connState uint8

const (
	stateIdle connState = iota
	stateLent
	stateClosing
)

// Acquire lends a connection to sink, waiting in line for as long as the pool's
// WaitTimeout allows. The caller must follow with backend.Conn.Send; when the
// connection has come free it returns to the pool by itself. now is the time on
// the Set's clock if the caller has just read it, else 0.
func (p *Pool) Acquire(w *Waiter, sink backend.Sink, now int64) (*backend.Conn, error) {
	for {
		c, at, joined, err := p.next(w, sink, now)
		if err != nil || joined {
			return c, err
		}
		now = at
		if p.wary.Load() != 0 && p.doubtful(c) {
			if err := p.ask(c); err != nil {
				p.Discard(c, err)
				now = 0
				continue
			}
			now = 0
		}
		if w.Primary && c.Standby() {
			// What it said may be from before its promotion.
			if err := c.Exec("", p.checkTimeout()); err != nil {
				p.Discard(c, err)
				continue
			}
			if c.Standby() {
				p.Release(c)
				return nil, ErrStandby
			}
			now = 0
		}
		err = c.Lend(sink, now, time.Duration(p.checkDelay.Load()))
		if errors.Is(err, backend.ErrStale) {
			if err := p.check(c); err != nil {
				p.Discard(c, err)
				now = 0
				continue
			}
			err = c.Lend(sink, 0, 0)
		}
		if err == nil {
			return c, nil
		}
		// It died on the way here, and has told the pool.
	}
}

// next takes a connection off the stack, joins one that is lent, or waits for either.
// now is the time if it is known, else 0; so is at, when there is a connection.
func (p *Pool) next(w *Waiter, sink backend.Sink, now int64) (c *backend.Conn, at int64, joined bool, err error) {
	first := false // it has stood in line and been called in vain: it is the next one
	for {
		p.mu.Lock()
		if p.closed || p.fenced {
			err := ErrClosed
			if !p.closed {
				err = ErrMoved
			}
			p.mu.Unlock()
			return nil, 0, false, err
		}
		turn := (first || p.first == nil) && !p.paused
		if turn && w.Share && (len(p.idle) == 0 || len(p.out) >= p.width.now()) {
			for range min(len(p.out), maxSeats) {
				c := p.seatLocked()
				if c == nil {
					break
				}
				p.mu.Unlock()
				if p.join(c, w, sink) {
					return c, now, true, nil
				}
				p.mu.Lock()
			}
			turn = (first || p.first == nil) && !p.paused && !p.closed && !p.fenced
		}
		if len(p.idle) > 0 && turn {
			c = p.takeIdleLocked(w)
			p.mu.Unlock()
			return c, now, false, nil
		}
		if p.closed || p.fenced {
			p.mu.Unlock()
			continue
		}
		if now == 0 {
			now = p.set.now()
		}
		if !first {
			w.since = now
		}
		p.used = now
		if p.lastErr != nil && p.refusedLocked(now) && !w.endures(p.lastErr) {
			err = p.lastErr
			p.mu.Unlock()
			return nil, 0, false, err
		}
		p.queueLocked(w, first)
		p.growLocked()
		p.mu.Unlock()

		r := <-w.ch
		w.pool.Store(nil)
		if r.room == nil {
			return r.conn, r.at, false, r.err
		}
		if p.join(r.room, w, sink) {
			return r.room, 0, true, nil
		}
		first, now = true, 0
	}
}

// takeIdleLocked lends an idle connection.
func (p *Pool) takeIdleLocked(w *Waiter) *backend.Conn {
	i := len(p.idle) - 1
	if p.limits.RoundRobin {
		i = 0
	}
	if w.Prefer != nil {
		if k := slices.Index(p.idle, w.Prefer); k >= 0 {
			i = k
		}
	}
	c := p.idle[i]
	p.idle = slices.Delete(p.idle, i, i+1)
	p.lendLocked(c)
	p.wait.Buckets[0]++
	return c
}

// queueLocked puts w at the end of the line, or back to its front.
func (p *Pool) queueLocked(w *Waiter, front bool) {
	if w.ch == nil {
		w.ch = make(chan result, 1)
	}
	w.queued = true
	w.prev, w.next = p.last, nil
	if front {
		w.prev, w.next = nil, p.first
	}
	if w.prev == nil {
		p.first = w
	} else {
		w.prev.next = w
	}
	if w.next == nil {
		p.last = w
	} else {
		w.next.prev = w
	}
	p.waiting++
	p.queued.Store(int64(p.waiting))
	w.pool.Store(p)
}

// endures reports whether w stays in line although a login has failed this way.
func (w *Waiter) endures(err error) bool {
	refused, _ := backend.Refused(err)
	return w.Patient && refused
}

// refusedLocked reports whether a new waiter would only hear the last login's
// error again: the server was asked a moment ago and there is no connection
// that could be waited for.
func (p *Pool) refusedLocked(now int64) bool {
	return len(p.all) == 0 && p.dialing == 0 && now < p.retryAt && !transient(p.lastErr)
}

func (p *Pool) lendLocked(c *backend.Conn) {
	m := memberOf(c)
	m.state, m.at = stateLent, len(p.out)
	p.out = append(p.out, c)
	p.leased.Store(int64(len(p.out)))
	p.assigned++
	p.load.Add(1)
}

// unlendLocked is the reverse of lendLocked.
func (p *Pool) unlendLocked(m *member) {
	m.state = stateIdle
	last := len(p.out) - 1
	memberOf(p.out[last]).at = m.at
	p.out[m.at], p.out[last] = p.out[last], nil
	p.out = p.out[:last]
	p.leased.Store(int64(len(p.out)))
	p.load.Add(-1)
	if len(p.out) == 0 && p.drained != nil {
		close(p.drained)
		p.drained = nil
	}
}

func (p *Pool) checkTimeout() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limits.CheckTimeout
}

// check asks a connection that has been idle for long whether it still works.
func (p *Pool) check(c *backend.Conn) error {
	p.mu.Lock()
	l := p.limits
	p.mu.Unlock()
	return c.Exec(l.CheckQuery, l.CheckTimeout)
}

// Release takes back a clean connection and gives it to the oldest waiter. It
// panics if the connection is not lent.
func (p *Pool) Release(c *backend.Conn) {
	p.mu.Lock()
	m := memberOf(c)
	if m == nil || m.state != stateLent {
		if m != nil && m.state == stateClosing || m == nil {
			p.mu.Unlock()
			return // discarded in the meantime
		}
		p.mu.Unlock()
		panic("pool: release of a connection that is not lent")
	}
	p.unlendLocked(m)
	if p.retiringLocked(m) || p.overLocked() {
		p.closeLocked(c, m)
		p.mu.Unlock()
		return
	}
	if p.set.caps.claims(p.share, p.first == nil || p.paused) {
		p.closeLocked(c, m)
	} else {
		p.placeLocked(c)
	}
	p.mu.Unlock()
}

// placeLocked hands a free connection to the oldest waiter or stacks it.
func (p *Pool) placeLocked(c *backend.Conn) {
	if w := p.first; w != nil && !p.paused {
		p.leaveLocked(w)
		p.lendLocked(c)
		at := c.ReleasedAt()
		p.wait.Add(time.Duration(max(0, at-w.since)))
		w.ch <- result{conn: c, at: at}
		return
	}
	p.idle = append(p.idle, c)
}

// serveLocked gives idle connections to those who wait, which is what Suspend
// leaves behind.
func (p *Pool) serveLocked() {
	for n := len(p.idle); n > 0 && p.first != nil && !p.paused; n-- {
		c := p.idle[n-1]
		p.idle = slices.Delete(p.idle, n-1, n)
		p.placeLocked(c)
	}
}

// leaveLocked takes w out of the queue.
func (p *Pool) leaveLocked(w *Waiter) {
	if w.prev == nil {
		p.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		p.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next, w.queued = nil, nil, false
	p.waiting--
	p.queued.Store(int64(p.waiting))
	if p.waiting == 0 && p.set.caps.hungry.Load() {
		p.set.caps.withdraw(p.share)
	}
}

// Cancel ends w's waiting with err. It reports false if w is not waiting.
func (w *Waiter) Cancel(err error) bool {
	p := w.pool.Load()
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !w.queued || w.pool.Load() != p {
		return false
	}
	p.leaveLocked(w)
	w.ch <- result{err: err}
	return true
}

// Waiting reports whether w stands in a queue.
func (w *Waiter) Waiting() bool { return w.pool.Load() != nil }

// Discard removes a connection that has died or must not be used again, asking
// the server first to stop what it may still be doing.
func (p *Pool) Discard(c *backend.Conn, err error) {
	if !c.Alive() {
		p.suspect()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m := memberOf(c)
	if m == nil || m.state == stateClosing {
		return
	}
	if m.state == stateLent {
		p.unlendLocked(m)
	} else if i := slices.Index(p.idle, c); i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
	}
	p.set.log.Debug("server connection closed", "database", p.Key.Database, "user", p.Key.User, "server", p.Key.Server,
		"pid", c.PID, "reason", err)
	p.closeLocked(c, m)
}

// suspect has the server looked at. The pool's mutex is not held.
func (p *Pool) suspect() {
	if p.set.suspect != nil && p.set.ctx.Err() == nil {
		p.set.suspect(p.Key.Database, p.Key.Server)
	}
}

// closeLocked closes a connection that is neither idle nor lent. Its place in
// the pool is free when the server has let go of it.
func (p *Pool) closeLocked(c *backend.Conn, m *member) {
	m.state = stateClosing
	p.closing++
	p.set.caps.leave(p.share)
	p.set.goes.Add(1)
	go func() {
		defer p.set.goes.Done()
		c.Kill()
		c.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.all, c)
		p.closing--
		p.used = p.set.now()
		n := c.Counters()
		p.gone.Merge(&n)
		p.set.caps.free(p.share)
		p.growLocked()
	}()
}

// growLocked opens connections for those who wait, as far as the limits allow.
func (p *Pool) growLocked() {
	if !p.openLocked() && p.set.caps.hungry.Load() {
		p.set.caps.withdraw(p.share)
	}
}

// openLocked is growLocked; it reports whether a limit that p shares has stopped
// it.
func (p *Pool) openLocked() (refused bool) {
	if p.closed || p.paused || p.fenced {
		return false
	}
	now := int64(0)
	for want := max(p.waiting, p.limits.Min-(len(p.all)-p.closing)) - p.dialing; want > 0; want-- {
		n := len(p.all) + p.dialing
		if p.limits.Size > 0 && n >= p.limits.Size+p.limits.Reserve {
			return false // most calls end here, without a look at the clock
		}
		if now == 0 {
			now = p.set.now()
		}
		if p.limits.Size > 0 && n >= p.limits.Size+p.reserveLocked(now) {
			return false
		}
		if p.failures > 0 {
			// One attempt at a time, not more often than LoginRetry.
			if p.dialing > 0 {
				return false
			}
			if now < p.retryAt {
				p.retryLaterLocked(time.Duration(p.retryAt - now))
				return false
			}
		}
		if !p.set.caps.take(p.share, p.waiting > p.dialing) {
			return true
		}
		p.dialing++
		p.set.goes.Add(1)
		go p.dial(p.login, p.dialer, p.generation)
	}
	return false
}

// reserveLocked returns by how much the pool may be larger than its size: not at
// all before somebody has waited for long.
func (p *Pool) reserveLocked(now int64) int {
	if p.limits.Reserve == 0 || p.first == nil || now-p.first.since < int64(p.limits.ReserveAfter) {
		return 0
	}
	return p.limits.Reserve
}

// overLocked reports whether the pool has a connection too many: of the reserve
// one stays as long as it has waiters to serve.
func (p *Pool) overLocked() bool {
	n := len(p.all) - p.closing
	return p.limits.Size > 0 && n > p.limits.Size && (p.first == nil || n > p.limits.Size+p.limits.Reserve)
}

func (p *Pool) retryLaterLocked(d time.Duration) {
	if p.retry != nil {
		p.retry.Stop()
	}
	p.retry = time.AfterFunc(d, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.growLocked()
	})
}

// dial opens one connection. Its goroutine is waited for by Set.Close.
func (p *Pool) dial(l backend.Login, d *backend.Dialer, generation int) {
	defer p.set.goes.Done()
	c, err := d.Dial(p.set.ctx, l, p)
	if refused, busy := backend.Refused(err); err != nil && (!refused || busy) {
		p.suspect()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dialing--
	if err != nil {
		p.set.caps.leave(p.share)
		p.set.caps.free(p.share)
		switch {
		case p.closed:
		case !same(l.Password, p.login.Password):
			p.growLocked() // it says nothing of the password that counts by now
		default:
			p.refusalLocked(err)
		}
		return
	}
	if p.failures > 0 {
		p.set.log.Info("server accepts logins again", "database", p.Key.Database, "user", p.Key.User, "server", p.Key.Server)
	}
	p.opened++
	p.failures, p.lastErr = 0, nil
	if p.params == nil {
		p.params = c.Params()
	}
	m := &member{generation: generation}
	p.all[c], c.Place = m, m
	switch {
	case p.closed || generation != p.generation || !c.Alive():
		p.closeLocked(c, m)
	default:
		p.placeLocked(c)
	}
	p.growLocked()
}

// refusalLocked deals with a failed login.
func (p *Pool) refusalLocked(err error) {
	p.failures++
	p.failed++
	p.lastErr = err
	pause := p.limits.LoginRetry
	if p.failures == 1 {
		p.set.log.Warn("server login failed", "database", p.Key.Database, "user", p.Key.User, "server", p.Key.Server, "error", err)
	}
	if refused, _ := backend.Refused(err); !refused {
		pause = backOff(pause, p.failures)
		err = fmt.Errorf("%w: %w", ErrUnreachable, err)
		p.lastErr = err
	}
	p.retryAt = p.set.now() + int64(pause)
	if len(p.all) == 0 && p.dialing == 0 && !transient(err) {
		for w := p.first; w != nil; {
			next := w.next
			if !w.endures(err) {
				p.leaveLocked(w)
				w.ch <- result{err: err}
			}
			w = next
		}
	}
	if p.waiting > 0 {
		p.retryLaterLocked(pause)
	}
}

// transient reports whether a login that failed this way is worth waiting for:
// the server is there, but cannot take another connection yet.
func transient(err error) bool {
	_, busy := backend.Refused(err)
	return busy
}

// Params returns what a fresh login reports (server_version and so on), or nil
// while there has not been one. The map must not be changed.
func (p *Pool) Params() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.params
}
