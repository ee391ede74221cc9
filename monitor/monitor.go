package monitor

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/router"
)

// ErrNoDatabase is returned by Wait where the configuration has no such entry,
// or has lost it.
var ErrNoDatabase = errors.New("no such database entry")

// Options for a Monitor. Log and Dial must be given.
type Options struct {
	Log  *slog.Logger
	Dial func(*config.Config, *config.Database) *backend.Dialer
	Load func(addr string) *atomic.Int64 // leases of a server; nil: always 0
	Gate Gate                            // told of servers that must not be used; nil: nobody
}

// Gate is what lends the connections. Its methods are called before the picture
// that they follow from is published, and with a lock of the Monitor held: they must
// not call back. Database is the name of an entry. Package pool has the real one.
type Gate interface {
	Fence(database, addr string) // the server must not be used: cut everything
	Admit(database, addr string) // it may be used
	Leave(database, addr string) // it is down, or has left
	// Stay is told which network addresses the server's name has: connections to
	// others are closed when they come free or, with cut, at once.
	Stay(database, addr string, hosts []string, cut bool)
}

// Monitor watches the servers of all databases.
type Monitor struct {
	// Set at construction.
	log  *slog.Logger
	dial func(*config.Config, *config.Database) *backend.Dialer
	load func(addr string) *atomic.Int64
	gate Gate
	ctx  context.Context // ends when the Monitor is closed
	stop context.CancelFunc
	goes sync.WaitGroup // one for each server, each catalog that is read, and each Patroni

	events events

	entries atomic.Pointer[map[string]*entry] // replaced whole, by name

	// Guarded by mu.
	mu     sync.Mutex // held by one Apply or Close at a time
	closed bool
	past   uint64 // no entry that has left had a higher generation
}

// Status is what is known of one server of one database.
type Status struct {
	Database  string
	Host      string
	Port      int
	Addr      string
	Role      router.Role
	Fixed     bool // the role comes from the configuration
	Up        bool
	Lag       time.Duration // of a replica
	System    string        // system identifier of its cluster; "" is not known
	Timeline  uint32        // of its WAL; 0 is not known
	LSN       uint64        // of a primary: WAL insert position; of a replica: replay position
	LagBytes  int64         // of a replica: WAL that it has not replayed; 0 if positions cannot be compared
	Weight    int
	Groups    []string
	Changed   time.Time     // last change of Up or Role
	Checked   time.Time     // end of the last check
	Odd       string        // what is odd about its role, or why it is not used
	Fenced    bool          // it must not be used at all
	Slow      bool          // a replica whose lag is, or was a moment ago, over max_replica_lag
	Banned    time.Time     // a replica that came and went gets no reads before; zero if it is not banned
	SyncState string        // of a replica, as its primary says: async, potential, sync, quorum; "" is not known
	Started   time.Time     // when the server process began; zero is not known
	Delay     time.Duration // of a replica: age of the last transaction that it has replayed; 0 if it has replayed all
	Checks    uint64
	Failures  uint64 // checks without an answer
	LastError string // of the last check; "" if it was answered
	Load      int64
}

// New starts a Monitor. Close ends it.
func New(cfg *config.Config, opt Options) *Monitor {
	ctx, stop := context.WithCancel(context.Background())
	m := &Monitor{log: opt.Log, dial: opt.Dial, load: opt.Load, gate: opt.Gate, ctx: ctx, stop: stop}
	if m.load == nil {
		m.load = func(string) *atomic.Int64 { return new(atomic.Int64) }
	}
	m.entries.Store(&map[string]*entry{})
	m.Apply(cfg)
	return m
}

// Apply takes over a new configuration. What is known of servers that stay is
// kept, and their connections are as long as the login is the same.
func (m *Monitor) Apply(cfg *config.Config) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	old := *m.entries.Load()
	next := make(map[string]*entry, len(cfg.Databases))
	var c change
	for name, db := range cfg.Databases {
		e := old[name]
		if e == nil {
			e = newEntry(name, m.log, m.gate, &m.events)
			e.catalogs.ctx, e.catalogs.goes = m.ctx, &m.goes
		}
		next[name] = e
		m.ask(e, cfg, db)
		m.configure(e, cfg, db, &c)
	}
	m.entries.Store(&next)
	for name, e := range old {
		if next[name] == nil {
			e.stopPatroni()
			c.retired = append(c.retired, m.retire(e)...)
			e.catalogs.close()
		}
	}
	for name, db := range cfg.Databases {
		next[name].catalogs.configure(cfg, db, m.dial(cfg, db))
	}
	m.carryOut(&c)
}

// change is which servers come and go.
type change struct{ started, retired []*server }

// carryOut starts and ends the goroutines of servers. m.mu is held.
func (m *Monitor) carryOut(c *change) {
	for _, s := range c.started {
		m.goes.Go(s.run) // until s.stop, or m.stop
	}
	for _, s := range c.retired {
		s.stop()
	}
	for _, s := range c.retired {
		<-s.done
	}
}

// configure gives an entry the servers of its database, and those that Patroni has
// listed.
func (m *Monitor) configure(e *entry, cfg *config.Config, db *config.Database, c *change) {
	dialer := m.dial(cfg, db)
	e.mu.Lock()
	defer e.unlock()
	e.cfg, e.db = cfg, db
	e.named, e.reads = db.SystemIdentifier, db.PrimaryReads
	e.ramp, e.interval = cfg.Proxy.ServerRamp, cfg.Proxy.ServerCheckInterval
	left := slices.Clone(e.servers)
	all := e.patroni.join(db.Servers)
	servers := make([]*server, 0, len(all))
	for _, conf := range all {
		set := newSettings(cfg, db, conf, dialer)
		i := slices.IndexFunc(left, func(s *server) bool { return s.addr == conf.Addr() })
		var s *server
		if i >= 0 {
			s = left[i]
			left = slices.Delete(left, i, i+1)
			s.settings.Store(set)
			s.kick(suspectPause)
		} else {
			s = newServer(m.ctx, e, conf.Addr(), m.load(conf.Addr()))
			s.settings.Store(set)
			c.started = append(c.started, s)
			if e.topology.Load() != nil {
				e.noteLocked(s, "joined", "", func() { e.log.Info("server has joined", "server", s.addr) })
			}
		}
		s.state.conf, s.state.grace = conf, set.timeout+set.interval
		servers = append(servers, s)
	}
	e.servers = servers
	e.limit = lagLimitOf(db)
	e.list.Store(&servers)
	if e.source != nil && !slices.Contains(servers, e.source) {
		e.followLocked(nil, identity{})
	}
	if e.topology.Load() == nil {
		e.topology.Store(&router.Topology{Generation: m.past, Turn: e.turn, Provers: e.catalogs})
	}
	for _, s := range left {
		e.noteLocked(s, "left", "", func() { e.log.Info("server has left", "server", s.addr) })
	}
	e.publishLocked()
	for _, s := range left {
		if e.gate != nil {
			e.gate.Leave(e.name, s.addr)
		}
	}
	c.retired = append(c.retired, left...)
}

// retire wakes who waits for an entry that has left, and returns its servers.
func (m *Monitor) retire(e *entry) []*server {
	e.mu.Lock()
	defer e.mu.Unlock()
	m.past = max(m.past, e.topology.Load().Generation)
	close(e.gone)
	return e.servers
}

// Topology returns the current picture of a database, by the name of its entry
// in the configuration; nil if there is no such entry.
func (m *Monitor) Topology(database string) *router.Topology {
	e := (*m.entries.Load())[database]
	if e == nil {
		return nil
	}
	return e.topology.Load()
}

// Wait returns nil when the picture of a database is newer than the given
// generation, ctx's error when that ends first, and ErrNoDatabase when there is
// no such entry any more.
func (m *Monitor) Wait(ctx context.Context, database string, than uint64) error {
	e := (*m.entries.Load())[database]
	if e == nil {
		return ErrNoDatabase
	}
	for {
		changed := *e.changed.Load() // before the picture, so that none is missed
		if e.topology.Load().Generation > than {
			return nil
		}
		select {
		case <-changed:
		case <-e.gone:
			return ErrNoDatabase
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Suspect is told that a connection to a server broke, or could not be opened: all
// servers of the database are checked at once. It takes no lock of an entry. The database is the name of an entry, or one
// that falls to the wildcard.
func (m *Monitor) Suspect(database, addr string) {
	entries := *m.entries.Load()
	e := entries[database]
	if e == nil {
		e = entries[config.Wildcard]
	}
	if e == nil {
		return
	}
	list := *e.list.Load()
	if !slices.ContainsFunc(list, func(s *server) bool { return s.addr == addr }) {
		return
	}
	for _, s := range list { // another one may be the primary by now
		s.kick(suspectPause)
	}
	if p := e.poller.Load(); p != nil {
		p.kick()
	}
}

// Want is told that a read must see on a replica what could be seen on the primary
// at the moment of stamp, and that no replica is known to show it: the primary is
// asked for its position soon, and the replicas after it until they have replayed
// it, or for lsn_interval. The database is the name of an entry.
func (m *Monitor) Want(database string, stamp int64) {
	if e := (*m.entries.Load())[database]; e != nil {
		e.want(stamp)
	}
}

func (e *entry) want(stamp int64) {
	for {
		old := e.wanted.Load()
		if old >= stamp {
			return
		}
		if e.wanted.CompareAndSwap(old, stamp) {
			break
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.source; s != nil && s.covered.Load() < stamp {
		s.kick(s.settings.Load().hurry)
	}
}

// Ready returns when every server has been checked once, whatever came of it.
func (m *Monitor) Ready(ctx context.Context) error {
	for _, e := range *m.entries.Load() {
		e.mu.Lock()
		servers := e.servers
		e.mu.Unlock()
		for _, s := range servers {
			select {
			case <-s.first:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// Status returns all servers, ordered by database and then as configured.
func (m *Monitor) Status() []Status {
	entries := *m.entries.Load()
	var out []Status
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		out = entries[name].status(out)
	}
	return out
}

func (e *entry) status(out []Status) []Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	picture := e.topology.Load()
	now := time.Now()
	syncs := ""
	if e.source != nil {
		syncs = e.source.state.syncs
	}
	for i, s := range e.servers {
		st := &s.state
		row := Status{
			Database: e.name, Host: st.conf.Host, Port: st.conf.Port, Addr: s.addr,
			Role: st.shown, Fixed: st.conf.Role != config.RoleAuto, Up: st.up, Lag: picture.Servers[i].Lag,
			System: st.id.system, Timeline: st.id.timeline, Odd: st.warned, Fenced: st.shut, Slow: st.late,
			Weight: st.conf.Weight, Groups: slices.Clone(st.conf.Groups), Changed: st.changed, Checked: st.checked,
			Checks: st.checks, Failures: st.failures, LastError: st.lastError, Load: s.load.Load(),
		}
		if a := st.newest; a != nil && a.positioned {
			row.LSN = a.position()
			row.LagBytes = e.lagBytesLocked(s)
			if a.recovery && (!a.receiving || a.replay < a.receive) {
				row.Delay = a.delay
			}
		}
		if st.bannedLocked(now) {
			row.Banned = st.banned
		}
		if st.started != 0 {
			row.Started = time.UnixMicro(st.started)
		}
		if st.shown == router.RoleReplica {
			row.SyncState = syncState(syncs, st.name)
		}
		out = append(out, row)
	}
	return out
}

// syncState finds the state of a standby in a list of "name=state".
func syncState(list, name string) string {
	for item := range strings.SplitSeq(list, ",") {
		if n, state, ok := strings.Cut(item, "="); ok && n == name && name != "" {
			return state
		}
	}
	return ""
}

// HaltedReasons are all that State.Halted can be.
var HaltedReasons = []router.Reason{router.HaltedSwitchover, router.HaltedContest, router.HaltedClusters}

// Stuck reports whether writes stop until somebody acts.
func (s *State) Stuck() bool { return s.Halted != "" && s.Halted != router.HaltedSwitchover }

// State is what is known of a database as a whole.
type State struct {
	Database   string
	System     string        // system identifier of its cluster; "" is not known
	Timeline   uint32        // newest on which a primary was seen
	Promotions uint64        // new timelines that were seen begin
	Halted     router.Reason // why no server takes writes whatever its role; "" is no reason
	Patroni    string        // "" where it is not asked, "ok", or why there is no answer
	Paused     bool          // Patroni's maintenance mode
	Scheduled  string        // a switchover that Patroni has planned; "" is none
}

// States returns all databases in order of their names.
func (m *Monitor) States() []State {
	entries := *m.entries.Load()
	var out []State
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		e := entries[name]
		e.mu.Lock()
		x := State{
			Database: name, System: e.system, Timeline: e.reigns[e.system], Promotions: e.promotions, Halted: e.topology.Load().Halted,
		}
		e.patroni.describe(&x)
		e.mu.Unlock()
		out = append(out, x)
	}
	return out
}

// Close ends all goroutines and connections and waits for them. Pictures stay as
// they were.
func (m *Monitor) Close() {
	m.mu.Lock()
	m.closed = true
	m.stop()
	for _, e := range *m.entries.Load() {
		e.catalogs.close()
	}
	m.mu.Unlock()
	m.goes.Wait()
}
