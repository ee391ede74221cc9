package monitor

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/router"
)

// appName is the application_name of the monitor's connections.
const appName = "pgproxy monitor"

// Pauses of a server's goroutine.
const (
	minTimeout   = time.Second            // a check may always take so long
	suspectPause = 50 * time.Millisecond  // between two checks, however many suspects are named
	hurried      = 20                     // so much more often than each lsn_interval positions are asked for when they are wanted
	minHurry     = time.Millisecond       // but with this pause at least
	secondChance = 250 * time.Millisecond // between the first failing check of a server and the second
	lateness     = time.Second            // a check that ends so much after its deadline says nothing of the server
)

// settings is what the checks of a server depend on; a reload replaces it whole.
type settings struct {
	login    backend.Login
	dialer   *backend.Dialer
	connect  bool // there is no login: only connect
	xids     bool // commits are looked up
	interval time.Duration
	sampling time.Duration
	hurry    time.Duration // between two checks while a read waits for what they may find
	timeout  time.Duration
}

func newSettings(cfg *config.Config, db *config.Database, srv config.Server, d *backend.Dialer) *settings {
	set := &settings{
		login: backend.Login{
			Server: srv, Database: db.DBName, User: db.MonitorUser, Password: db.MonitorPassword, AppName: appName,
		},
		dialer: d, connect: db.MonitorUser == "", xids: db.TrackCommits,
		interval: cfg.Proxy.ServerCheckInterval, sampling: cfg.Proxy.LSNInterval,
	}
	if set.interval <= 0 {
		set.interval = time.Second
	}
	if set.sampling <= 0 || set.sampling > set.interval {
		set.sampling = set.interval
	}
	set.hurry = min(max(set.sampling/hurried, minHurry), set.sampling)
	set.timeout = max(set.interval, minTimeout)
	if limit := cfg.Proxy.ServerConnectTimeout; limit > 0 {
		set.timeout = max(min(set.timeout, limit), minTimeout)
	}
	return set
}

// sameSession reports whether a connection of one is one of the other.
func sameSession(a, b backend.Login) bool {
	return a.Server.Addr() == b.Server.Addr() && a.Database == b.Database && a.User == b.User &&
		a.Password.Reveal() == b.Password.Reveal()
}

// server is one server of one database.
type server struct {
	// Set at construction.
	entry *entry
	addr  string
	load  *atomic.Int64
	ctx   context.Context // of the goroutine
	stop  context.CancelFunc
	first chan struct{} // closed after the first check, or at the end
	done  chan struct{} // closed when the goroutine has ended

	settings atomic.Pointer[settings]

	// Owned by the goroutine.
	line     *line
	began    time.Time // of the last check
	failures int       // failing checks in a row
	addrs    []string  // what its name stands for, sorted; nil: not looked up

	// Guarded by wakeMu.
	wakeMu  sync.Mutex
	kicked  bool
	gap     time.Duration // between the last check and the one that was asked for
	waiting *line         // watched at the moment
	kicks   chan struct{}

	// Atomic.
	covered atomic.Int64 // of a replica: Covered of the last picture; of the primary: stamp of the newest sample

	// Guarded by entry.mu.
	state state
}

func newServer(ctx context.Context, e *entry, addr string, load *atomic.Int64) *server {
	ctx, stop := context.WithCancel(ctx)
	return &server{
		entry: e, addr: addr, load: load, ctx: ctx, stop: stop,
		first: make(chan struct{}), done: make(chan struct{}), kicks: make(chan struct{}, 1),
	}
}

// run checks the server until its context ends.
func (s *server) run() {
	ctx := s.ctx
	defer s.stop()
	defer close(s.done)
	defer s.hangUp()
	started := false
	defer func() {
		if !started {
			close(s.first)
		}
	}()
	for {
		set := s.settings.Load()
		if s.line != nil && !sameSession(s.line.login, set.login) {
			s.hangUp()
		}
		s.began = time.Now()
		r := s.check(ctx, set)
		if ctx.Err() != nil {
			return
		}
		if took := time.Since(s.began); r.verdict == failing && took > set.timeout+lateness {
			continue // the process has stood still: the answer may be there
		}
		if r.verdict == failing {
			s.failures++
		} else {
			s.failures = 0
		}
		if r.verdict == failing && s.failures >= failuresToDown {
			r.verdict = dead
		}
		s.entry.report(s, r)
		d := s.next(set, r.verdict)
		if !started {
			started = true
			close(s.first)
			d = time.Duration(float64(d) * rand.Float64()) // servers that start together drift apart
		}
		s.pause(ctx, d)
		if ctx.Err() != nil {
			return
		}
	}
}

// result is what one check found.
type result struct {
	verdict verdict
	answer  *answer // nil: none
	err     error
}

// check asks the server. A connection that was broken in the meantime proves
// nothing, so it is replaced at once.
func (s *server) check(ctx context.Context, set *settings) result {
	deadline := s.began.Add(set.timeout)
	if set.connect {
		return s.connect(ctx, set, deadline)
	}
	since := s.began.Add(-set.interval)
	s.follow(ctx, set)
	if s.line != nil {
		s.line.xids = set.xids && !s.line.noXids
		a, err := s.line.ask(deadline, since)
		if !broken(err) {
			return s.judge(a, err)
		}
		s.lost()
		if ctx.Err() != nil {
			return result{}
		}
	}
	l, err := dialLine(ctx, set.dialer, set.login, deadline)
	if err != nil {
		return result{verdict: judgeLogin(err), err: err}
	}
	s.line, l.xids = l, set.xids
	return s.judge(l.ask(deadline, since))
}

// follow looks whether the server's name has other addresses by now.
func (s *server) follow(ctx context.Context, set *settings) {
	addrs, err := set.dialer.Addrs(ctx, set.login.Server.Network(), set.login.Server.Host)
	if err != nil || len(addrs) == 0 || slices.Equal(addrs, s.addrs) {
		return
	}
	addrs = slices.Sorted(slices.Values(addrs)) // resolvers turn them round
	if slices.Equal(addrs, s.addrs) {
		return
	}
	if s.addrs != nil {
		s.entry.moved(s, s.addrs, addrs)
	}
	s.addrs = addrs
	if s.line != nil && !slices.Contains(addrs, s.line.remote()) {
		s.lost()
	}
}

func (s *server) judge(a *answer, err error) result {
	switch {
	case err == nil:
		return result{verdict: alive, answer: a}
	case refused(err):
		return result{verdict: kept, err: err}
	}
	s.lost()
	return result{verdict: failing, err: err}
}

// connect is the check of a server that is asked nothing.
func (s *server) connect(ctx context.Context, set *settings, deadline time.Time) result {
	cfg, err := set.dialer.Config(set.login)
	if err != nil {
		return result{verdict: failing, err: err}
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := cfg.DialFunc(ctx, set.login.Server.Network(), s.addr)
	if err != nil {
		return result{verdict: judgeLogin(err), err: err}
	}
	_ = conn.Close()
	return result{verdict: alive}
}

// lost drops the connection, and with it what the server is known to have
// replayed.
func (s *server) lost() {
	s.hangUp()
	s.entry.lost(s)
}

func (s *server) hangUp() {
	if s.line != nil {
		s.line.close()
		s.line = nil
	}
}

// next is the pause until the next check, jittered.
func (s *server) next(set *settings, v verdict) time.Duration {
	d := set.interval
	switch {
	case v == failing:
		d = min(d, secondChance)
	case v == alive && !set.connect && s.entry.sampled.Load():
		d = set.sampling
		if want := s.entry.wanted.Load(); want > s.covered.Load() && router.Nanotime()-want < int64(set.sampling) {
			d = set.hurry
		}
	}
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
}

// pause returns after d, when ctx ends, when kick was called, or when the
// connection breaks; in the last two cases not before suspectPause, or what kick
// was given, has passed since the last check began.
func (s *server) pause(ctx context.Context, d time.Duration) {
	until := time.Now().Add(d)
	s.wakeMu.Lock()
	kicked, l := s.kicked, s.line
	if !kicked && l != nil {
		s.waiting = l
		_ = l.conn.SetReadDeadline(until)
	}
	s.wakeMu.Unlock()
	early := kicked
	switch {
	case kicked:
	case l == nil:
		early = s.sleep(ctx, d)
	case ctx.Err() == nil: // asked after the deadline is set: see dialLine
		if l.watch() != nil {
			s.lost()
		}
		early = time.Now().Before(until)
	}
	s.wakeMu.Lock()
	gap := suspectPause
	if s.kicked {
		gap = s.gap
	}
	s.waiting, s.kicked = nil, false
	select {
	case <-s.kicks:
	default:
	}
	s.wakeMu.Unlock()
	if rest := time.Until(s.began.Add(gap)); early && rest > 0 {
		timer := time.NewTimer(rest)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// sleep reports whether it was ended by kick.
func (s *server) sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-s.kicks:
		return true
	}
	return false
}

// kick makes the next check come at once, but not before gap has passed since the
// last one began.
func (s *server) kick(gap time.Duration) {
	s.wakeMu.Lock()
	defer s.wakeMu.Unlock()
	if s.kicked {
		s.gap = min(s.gap, gap)
		return
	}
	s.kicked, s.gap = true, gap
	select {
	case s.kicks <- struct{}{}:
	default:
	}
	if s.waiting != nil {
		_ = s.waiting.conn.SetReadDeadline(past)
	}
}
