package pool

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/backend"
	"pgproxy/config"
)

// tick is how often the janitor looks after pools: the precision of their
// timeouts.
const tick = 100 * time.Millisecond

// unusedAfter is how long a pool stays that has no connection and nobody who
// wants one.
const unusedAfter = time.Minute

// Options for a Set. Log and Now must be given.
type Options struct {
	Log     *slog.Logger
	Now     func() int64                    // monotonic nanoseconds
	Load    func(addr string) *atomic.Int64 // the leases of a server, shared with the router
	Suspect func(database, addr string)     // told of servers that cannot be reached
	Dial    func(*config.Config, *config.Database) *backend.Dialer
}

// Set holds all pools.
type Set struct {
	// Set at construction.
	log     *slog.Logger
	now     func() int64
	load    func(addr string) *atomic.Int64
	suspect func(database, addr string)
	dialer  func(*config.Config, *config.Database) *backend.Dialer
	ctx     context.Context // ends when the Set is closed: it bounds dials
	stop    context.CancelFunc
	goes    sync.WaitGroup // janitor, dials, closes
	caps    *caps

	// Guarded by mu.
	mu        sync.RWMutex
	pools     map[Key]*Pool
	cfg       *config.Config
	paused    map[string]bool // databases; "" is all
	suspended bool            // "" is paused by Suspend
	fenced    map[place]bool
	retired   []*Pool // out of pools, with connections that are still lent
	closed    bool
	findings  []Finding // of audits, the last one last
}

// New starts a Set. Close ends it.
func New(cfg *config.Config, opt Options) *Set {
	ctx, stop := context.WithCancel(context.Background())
	s := &Set{
		log: opt.Log, now: opt.Now, load: opt.Load, suspect: opt.Suspect, dialer: opt.Dial, ctx: ctx, stop: stop,
		pools: make(map[Key]*Pool), cfg: cfg, paused: make(map[string]bool),
		fenced: make(map[place]bool),
	}
	s.caps = newCaps(s.now, &s.goes)
	if s.load == nil {
		var mu sync.Mutex
		loads := make(map[string]*atomic.Int64)
		s.load = func(addr string) *atomic.Int64 {
			mu.Lock()
			defer mu.Unlock()
			if loads[addr] == nil {
				loads[addr] = new(atomic.Int64)
			}
			return loads[addr]
		}
	}
	s.goes.Add(1)
	go s.janitor()
	return s
}

// Dialer makes what opens connections to the servers of a database, for who needs
// one that belongs to no pool.
func (s *Set) Dialer(cfg *config.Config, db *config.Database) *backend.Dialer {
	return s.dialer(cfg, db)
}

// Get returns the pool for a client of database (by the name that it asked for)
// on one of the database's servers, logging in as user. Its next logins use the
// password, unless the database has one of its own. The pool is closed if the
// configuration in force has none like it; the caller's database is of another
// one then and is not looked at.
func (s *Set) Get(database string, _ *config.Database, server config.Server, user string, password config.Secret) *Pool {
	k := Key{Database: database, User: user, Server: server.Addr()}
	s.mu.RLock()
	p, db := s.pools[k], k.of(s.cfg)
	s.mu.RUnlock()
	if p == nil {
		p, db = s.add(k, server)
	}
	if db == nil {
		return p
	}
	if db.User != "" && !db.Password.Empty() {
		password = db.Password
	}
	p.SetPassword(password)
	return p
}

// add makes the pool of a key, unless somebody was faster, and returns it with
// its database; nil and a closed pool if it is in no configuration any more.
func (s *Set) add(k Key, server config.Server) (*Pool, *config.Database) {
	s.mu.Lock()
	defer s.mu.Unlock()
	db := k.of(s.cfg)
	if p := s.pools[k]; p != nil {
		return p, db
	}
	p := &Pool{Key: k, set: s, server: server, all: make(map[*backend.Conn]*member)}
	p.share, p.beside, p.sent = newShare(p, k), s.newOutside(k, nil), s.newOutside(Key{Server: k.Server}, nil)
	if db == nil || s.closed {
		p.closed = true
		return p, nil
	}
	p.load = s.load(k.Server)
	p.paused = s.paused[""] || s.paused[k.Database]
	p.used = s.now()
	p.configure(s.cfg, db)
	p.fenced = s.fenced[place{db.Name, k.Server}]
	p.login = backend.Login{Server: server, Database: db.DBName, User: k.User}
	s.pools[k] = p
	return p, db
}

// Closed reports whether the pool is of no more use: ask the Set for another.
func (p *Pool) Closed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// of returns the database of a configuration that a pool with this key serves;
// nil if there is none.
func (k Key) of(cfg *config.Config) *config.Database {
	db, ok := cfg.Database(k.Database)
	if !ok || db.User != "" && db.User != k.User ||
		len(db.Patroni) == 0 && !slices.ContainsFunc(db.Servers, func(v config.Server) bool { return v.Addr() == k.Server }) {
		return nil
	}
	return db
}

// configure takes over the limits of a configuration.
func (p *Pool) configure(cfg *config.Config, db *config.Database) {
	x := cfg.Proxy
	l := Limits{
		Size: db.PoolSize, Min: db.MinPoolSize, Reserve: db.ReservePoolSize, ReserveAfter: x.ReservePoolTimeout,
		RoundRobin:  x.ServerRoundRobin,
		WaitTimeout: db.QueryWaitTimeout, IdleTimeout: x.ServerIdleTimeout, Lifetime: db.ServerLifetime,
		CheckDelay: x.ServerCheckDelay, CheckQuery: x.ServerCheckQuery, LoginRetry: x.ServerLoginRetry,
		CheckTimeout: max(x.ServerConnectTimeout, time.Second), MaxPinned: db.MaxPinned,
	}
	mode := db.PoolMode
	if u := cfg.Users[p.Key.User]; u != nil {
		if u.PoolSize > 0 {
			l.Size = u.PoolSize
		}
		if u.ReservePoolSize > 0 {
			l.Reserve = u.ReservePoolSize
		}
		if u.QueryWaitTimeout > 0 {
			l.WaitTimeout = u.QueryWaitTimeout
		}
		if u.PoolMode != config.PoolInherit {
			mode = u.PoolMode
		}
	}
	if l.MaxPinned == 0 {
		l.MaxPinned = (l.Size + 1) / 2
	}
	most := sharedLimits(cfg, p.Key)
	p.set.caps.limit(p.share, most)
	p.set.caps.limit(p.beside.share, most)
	p.set.caps.limit(p.sent.share, [limitKinds]int{ofHost: most[ofHost]})
	d := p.set.dialer(cfg, db)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits, p.dialer, p.Mode, p.entry = l, d, mode, db.Name
	p.maxPinned.Store(int64(l.MaxPinned))
	if l.CheckQuery == config.CheckQueryOff {
		p.checkDelay.Store(0)
	} else {
		p.checkDelay.Store(int64(l.CheckDelay))
	}
}

// Apply takes over a new configuration: limits change at once, connections that
// another login or server would have now are closed when they come free, pools
// of databases or servers that are no more are closed.
func (s *Set) Apply(cfg *config.Config) {
	s.mu.Lock()
	s.cfg = cfg
	var retired []*Pool
	for k, p := range s.pools {
		db := k.of(cfg)
		if db == nil {
			delete(s.pools, k)
			retired = append(retired, p)
			continue
		}
		p.configure(cfg, db)
		p.relogin(db)
	}
	s.retired = append(s.retired, retired...)
	s.mu.Unlock()
	for _, p := range retired {
		p.close(ErrClosed)
	}
	s.caps.trim()
}

// empty reports whether a closed pool has let go of its last connection.
func (p *Pool) empty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.all)+len(p.apart)+len(p.streams) == 0 && p.dialing == 0
}

// relogin notes a changed database name or forced password for new connections.
func (p *Pool) relogin(db *config.Database) {
	p.mu.Lock()
	defer p.mu.Unlock()
	moved := p.login.Database != db.DBName
	p.login.Database = db.DBName
	p.replaced = ""
	if db.User != "" {
		p.passwordLocked(db.Password)
	}
	if moved {
		p.renewLocked()
	}
	for n := len(p.all) - p.closing - p.limits.Size; p.limits.Size > 0 && n > 0 && len(p.idle) > 0; n-- {
		c := p.idle[0]
		p.idle = slices.Delete(p.idle, 0, 1)
		p.closeLocked(c, memberOf(c))
	}
	p.growLocked() // the limits may be higher now
}

// close ends a pool: waiters get err, idle connections are closed now, lent ones
// when they come back.
func (p *Pool) close(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.retry != nil {
		p.retry.Stop()
	}
	for w := p.first; w != nil; w = p.first {
		p.leaveLocked(w)
		w.ch <- result{err: err}
	}
	p.renewLocked()
}

// renewLocked closes idle connections now and lent ones when they come back.
func (p *Pool) renewLocked() {
	p.generation++
	p.endApartLocked()
	for _, c := range p.idle {
		p.closeLocked(c, memberOf(c))
	}
	p.idle = nil
}

// janitor ends waits, idle and old connections, and unused pools. It ends with
// the Set.
func (s *Set) janitor() {
	defer s.goes.Done()
	t := time.NewTicker(tick)
	defer t.Stop()
	last := s.now()
	for n := 0; ; n++ {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		now := s.now()
		late := now-last > int64(10*tick) // the process has stood still: servers may have answered
		last = now
		s.caps.press()
		for _, p := range s.list() {
			if !late {
				p.expire()
			}
			if n%10 == 0 && p.tidy() {
				s.remove(p)
			}
		}
		if n%10 == 0 {
			s.forget()
		}
	}
}

// remove takes out a pool if it is still unused. Who holds it hears ErrClosed and
// asks for another.
func (s *Set) remove(p *Pool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.pools[p.Key] != p || !p.unusedLocked() {
		return
	}
	delete(s.pools, p.Key)
	p.closed = true
	if p.retry != nil {
		p.retry.Stop()
	}
}

// forget lets go of closed pools without connections.
func (s *Set) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = slices.DeleteFunc(s.retired, (*Pool).empty)
}

// list returns all pools in order of their keys.
func (s *Set) list() []*Pool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	l := make([]*Pool, 0, len(s.pools))
	for _, p := range s.pools {
		l = append(l, p)
	}
	slices.SortFunc(l, func(a, b *Pool) int {
		return cmp.Or(cmp.Compare(a.Key.Database, b.Key.Database), cmp.Compare(a.Key.User, b.Key.User), cmp.Compare(a.Key.Server, b.Key.Server))
	})
	return l
}

// expire ends the waiting of those whose time is over, and opens connections of
// the reserve. All waiters of a pool have the same timeout, so the oldest is the
// first.
func (p *Pool) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused {
		return
	}
	now := p.set.now()
	if p.reserveLocked(now) > 0 {
		p.growLocked()
	}
	if p.limits.WaitTimeout <= 0 {
		return
	}
	for w := p.first; w != nil && now-w.since > int64(p.limits.WaitTimeout); w = p.first {
		p.leaveLocked(w)
		p.wait.Add(time.Duration(now - w.since))
		w.ch <- result{err: ErrWaitTimeout}
	}
}

// unusedLocked reports whether a pool can go: it has had no connection and nobody
// who wants one for a while. Where min_pool_size is to be kept the pool stays, for
// a server that comes back.
func (p *Pool) unusedLocked() bool {
	return len(p.all)+len(p.apart)+len(p.streams) == 0 && p.dialing == 0 && p.first == nil && (p.limits.Min == 0 || p.opened == 0) &&
		p.set.now()-p.used > int64(unusedAfter)
}

// tidy closes what is too old or idle for too long, probes for servers that
// have gone unseen, and opens what min_pool_size asks for. It reports whether the
// pool is unused.
func (p *Pool) tidy() (unused bool) {
	p.mu.Lock()
	l := p.limits
	all := slices.AppendSeq(slices.Collect(maps.Keys(p.all)), maps.Keys(p.apart))
	p.mu.Unlock()
	for _, c := range all {
		c.Probe()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	spare := len(p.all) - p.closing - l.Min
	keep := p.idle[:0]
	for _, c := range p.idle { // the coldest first
		old := l.Lifetime > 0 && c.Age() > jittered(l.Lifetime, c.PID)
		idle := l.IdleTimeout > 0 && c.Idle() > l.IdleTimeout && spare > 0
		if old || idle {
			spare--
			p.closeLocked(c, memberOf(c))
			continue
		}
		keep = append(keep, c)
	}
	clear(p.idle[len(keep):])
	p.idle = keep
	for c, m := range p.all {
		if l.Lifetime > 0 && m.state == stateLent && c.Age() > jittered(l.Lifetime, c.PID) {
			m.retire = true
		}
	}
	if l.Min > 0 && p.opened > 0 {
		p.growLocked()
	}
	return p.unusedLocked()
}

// jittered spreads the ends of connections that were opened together over a
// tenth of their lifetime.
func jittered(d time.Duration, pid uint32) time.Duration {
	return d - d/10*time.Duration(pid%16)/16
}

// Close ends all pools and waits for their goroutines, until ctx ends. Lent
// connections should have been given up before.
func (s *Set) Close(ctx context.Context) error {
	s.mu.Lock()
	pools := slices.AppendSeq(s.retired, maps.Values(s.pools))
	s.pools, s.retired, s.closed = make(map[Key]*Pool), nil, true
	s.mu.Unlock()
	for _, p := range pools {
		p.close(ErrClosed)
		p.kill()
	}
	s.stop()
	done := make(chan struct{})
	go func() { s.goes.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// kill closes every connection now, lent or not.
func (p *Pool) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = nil
	p.endApartLocked()
	for c, m := range p.all {
		if m.state == stateClosing {
			continue
		}
		if m.state == stateLent {
			p.unlendLocked(m)
		}
		p.closeLocked(c, m)
	}
}
