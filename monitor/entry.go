package monitor

import (
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/config"
	"pgproxy/router"
)

// state is what is known of one server.
type state struct {
	conf  config.Server
	grace time.Duration // an answer older than this is an old one

	up, wasUp bool // wasUp: as it was logged last
	asked     bool // a check has ended
	says      router.Role
	shown     router.Role // after what the file says, and the fences
	id        identity
	current   *answer // the last one, nil once the connection is lost
	newest    *answer // the last one
	changed   time.Time
	checked   time.Time
	checks    uint64
	failures  uint64
	lastError string
	told      string // the error that was logged last
	warned    string // the oddity that was noted last
	steady    int64  // stamp of the first answer of its connection
	late      bool   // it lags more than is allowed

	started  int64     // when the server process began, in microseconds of Unix time; 0 is not known
	name     string    // of a replica: what it calls itself to its primary; "" is not known
	syncs    string    // of a primary: sync_state of its standbys, as "name=state,..."
	shut     bool      // it must not be used at all
	standing standing  // as the pools have been told
	horizon  uint64    // of a replica, or one that was: see router.Server.Horizon
	rival    bool      // another server says as well that it is the primary, and both have confirmed it
	wentDown time.Time // last time as a replica
	flaps    int       // times that it went down in short order
	banned   time.Time // no reads before, see banLocked
	returned time.Time // when it came up after it was down; zero: it has its full share
}

// entry is the servers of one database of the configuration.
type entry struct {
	// Set at construction.
	name     string
	log      *slog.Logger
	gate     Gate // nil: nobody is told
	events   *events
	turn     *atomic.Uint64
	gone     chan struct{} // closed when the entry has left the configuration
	catalogs *catalogs

	// Atomic.
	topology atomic.Pointer[router.Topology]
	changed  atomic.Pointer[chan struct{}] // closed when topology is replaced
	sampled  atomic.Bool                   // there are replicas: positions are asked for each lsn_interval
	wanted   atomic.Int64                  // stamp of the newest moment that a read wants to see on a replica
	list     atomic.Pointer[[]*server]     // servers, for Suspect
	poller   atomic.Pointer[poller]        // asks Patroni; nil: nobody does

	// Guarded by mu.
	mu       sync.Mutex
	servers  []*server         // in the order of the configuration
	source   *server           // the primary whose samples past has; nil if there is none
	sourceID identity          // who it was
	past     history           //
	limit    lagLimit          // from the configuration
	hurried  int64             // up to which wanted stamp the replicas were asked out of turn
	reigns   map[string]uint32 // highest timeline that a primary was seen on, by system
	notes    []note            // to be remembered and logged after mu is released

	cfg      *config.Config      //
	db       *config.Database    //
	named    string              // system_identifier of the file
	system   string              // of the cluster that the servers belong to; "" is not settled yet
	mixed    bool                // they belong to several, and it cannot be settled
	patroni  *cluster            // what Patroni said last; nil: it is not asked
	reads    config.PrimaryReads //
	ramp     time.Duration       //
	interval time.Duration       // between two checks

	contested  int64         // when several primaries were first seen; 0: they are not there now
	hold       *hold         // a switchover is under way
	halted     router.Reason // as it was noted last
	promotions uint64        // timelines that began
}

func newEntry(name string, log *slog.Logger, gate Gate, v *events) *entry {
	e := &entry{
		name: name, log: log.With("database", name), gate: gate, events: v, turn: new(atomic.Uint64), gone: make(chan struct{}),
		reigns: make(map[string]uint32), interval: time.Second,
	}
	e.catalogs = newCatalogs(e)
	e.list.Store(new([]*server))
	ch := make(chan struct{})
	e.changed.Store(&ch)
	return e
}

// report takes in the result of a check.
func (e *entry) report(s *server, r result) {
	e.mu.Lock()
	now := time.Now()
	wasUp := s.state.up
	e.successorLocked(s, r.answer)
	s.state.take(r, now)
	switch {
	case wasUp && !s.state.up:
		e.banLocked(s, now)
	case !wasUp && s.state.up && s.state.checks > 1 && s.state.asked && !s.state.wentDown.IsZero():
		s.state.returned = now
	}
	if r.err != nil {
		e.noteErrorLocked(s, r.verdict)
	} else {
		s.state.told = ""
	}
	e.publishLocked()
	e.unlock()
}

// moved is told that a server's name has other addresses.
func (e *entry) moved(s *server, was, now []string) {
	e.mu.Lock()
	defer e.unlock()
	e.noteLocked(s, "addresses", strings.Join(now, ", ")+", before it was "+strings.Join(was, ", "), func() {
		e.log.Info("the server's name has other addresses", "server", s.addr, "was", was, "now", now)
	})
	if e.gate != nil {
		e.gate.Stay(e.name, s.addr, now, false)
	}
}

// successorLocked cuts what is connected to the old primary behind a name that
// leads to another server on a newer timeline.
func (e *entry) successorLocked(s *server, a *answer) {
	old := s.state.newest
	if a == nil || old == nil || e.gate == nil || a.recovery || old.remote == a.remote || a.id.timeline <= old.id.timeline {
		return
	}
	e.gate.Stay(e.name, s.addr, []string{a.remote}, true)
}

// take notes what a check found, but for what depends on other servers.
func (st *state) take(r result, now time.Time) {
	st.checks++
	st.checked = now
	st.lastError = words(r.err)
	if r.err != nil {
		st.failures++
	}
	was := st.up
	switch r.verdict {
	case alive:
		st.up = true
	case dead:
		st.up = false
	}
	if a := r.answer; a != nil {
		if st.current == nil {
			st.steady = a.stamp // until now it may have restarted
		}
		st.current, st.newest, st.id = a, a, a.id
		st.started, st.name, st.syncs = a.started, a.name, a.syncs
		st.says = router.RolePrimary
		if a.recovery && a.xmax != 0 {
			st.horizon = a.xmax
		}
		if a.recovery {
			st.says = router.RoleReplica
		}
	}
	if was != st.up || !st.asked {
		st.changed = now
	}
}

// lost takes in that a server's connection broke: it may have restarted, and a
// standby then shows less than it said.
func (e *entry) lost(s *server) {
	e.mu.Lock()
	if s.state.current != nil {
		s.state.current = nil
		e.publishLocked()
	}
	e.unlock()
}

// unlock releases mu, and then remembers and logs what has happened.
func (e *entry) unlock() {
	notes := e.notes
	e.notes = nil
	e.mu.Unlock()
	for _, n := range notes {
		e.events.add(n.event)
		n.log()
	}
}

// toldDown is state.told of a server that is down: why, in the words of the moment,
// is told once.
const toldDown = "down"

// noteErrorLocked logs an error that is not a repetition and not told anyway.
func (e *entry) noteErrorLocked(s *server, v verdict) {
	st := &s.state
	if v == failing || st.told == st.lastError || v == dead && st.told == toldDown {
		return
	}
	st.told = st.lastError
	text := st.lastError
	if v == dead {
		st.told = toldDown
		e.noteLocked(s, "down", text, func() { e.log.Warn("server is down", "server", s.addr, "error", text) })
		return
	}
	up := st.up
	e.noteLocked(s, "check", "refused: "+text, func() {
		e.log.Warn("server refuses the check, its state stays", "server", s.addr, "up", up, "error", text)
	})
}

// publishLocked works out the picture from all that is known, and replaces the
// published one if it differs.
func (e *entry) publishLocked() {
	now := router.Nanotime()
	e.rolesLocked()
	if e.sampleLocked() {
		e.rolesLocked()
		e.catalogs.changed()
	}
	wall := time.Now()
	next := &router.Topology{
		System: e.sourceID.system, Halted: e.haltedLocked(), Servers: make([]router.Server, len(e.servers)), Turn: e.turn,
		Provers: e.catalogs,
	}
	bans, replicas, ramping := e.bansLocked(wall), false, false
	shares := make([]float64, len(e.servers))
	for i, s := range e.servers {
		st := &s.state
		next.Servers[i] = router.Server{
			Addr: s.addr, Role: st.shown, Up: st.up && (!bans || !st.bannedLocked(wall)), Weight: st.conf.Weight, Groups: st.conf.Groups,
			Load: s.load, Timeline: st.id.timeline, LSN: st.newest.position(), Steady: st.steady,
		}
		n := &next.Servers[i]
		switch st.shown {
		case router.RolePrimary:
			n.Horizon = st.horizon
			if s == e.source && st.current != nil {
				n.Covered = e.past.newest().last
				s.covered.Store(n.Covered)
			}
		case router.RoleReplica:
			replicas = replicas || st.up
			n.Lag, n.Covered = e.lagLocked(s, now), e.coveredLocked(s)
			e.lateLocked(s, n.Lag)
			n.Late = st.late
			s.covered.Store(n.Covered)
		}
		shares[i] = e.rampLocked(st, wall)
		ramping = ramping || shares[i] < 1
	}
	for i := range next.Servers {
		if w := &next.Servers[i].Weight; ramping && *w > 0 {
			*w = max(int(float64(*w)*rampWeights*shares[i]), 1)
		}
	}
	e.sampled.Store(replicas)
	e.hurryLocked()
	e.noteHaltedLocked(next.Halted)
	e.gateLocked()
	old := e.topology.Load()
	if old != nil && old.System == next.System && old.Halted == next.Halted && slices.EqualFunc(old.Servers, next.Servers, sameServer) {
		return
	}
	if old != nil {
		next.Generation = old.Generation
	}
	next.Generation++
	e.showLocked(next)
}

// hurryLocked has the replicas asked what they have replayed, once there is the
// sample that a read waits for. One that is down would be connected to each time.
func (e *entry) hurryLocked() {
	want := e.wanted.Load()
	if e.hurried >= want || e.past.newest().last < want {
		return
	}
	e.hurried = want
	for _, s := range e.servers {
		if s.state.up && s.state.shown == router.RoleReplica && s.covered.Load() < want {
			s.kick(minHurry)
		}
	}
}

// showLocked publishes a picture and wakes who waits for it.
func (e *entry) showLocked(t *router.Topology) {
	e.topology.Store(t)
	ch := make(chan struct{})
	close(*e.changed.Swap(&ch))
}

func sameServer(a, b router.Server) bool {
	return a.Addr == b.Addr && a.Role == b.Role && a.Up == b.Up && a.Lag == b.Lag && a.Weight == b.Weight &&
		slices.Equal(a.Groups, b.Groups) && a.Covered == b.Covered && a.Load == b.Load && a.Timeline == b.Timeline && a.LSN == b.LSN &&
		a.Late == b.Late && a.Steady == b.Steady && a.Horizon == b.Horizon
}

// sampleLocked keeps the history of the primary: of none while two claim to be it.
// While none is up the samples of the last one stay. It reports whether the
// primary is another one.
func (e *entry) sampleLocked() (changed bool) {
	var primary *server
	for _, s := range e.servers {
		st := &s.state
		if !st.up || st.shown != router.RolePrimary {
			continue
		}
		if primary != nil {
			return e.followLocked(nil, identity{})
		}
		primary = s
	}
	if primary == nil {
		return false
	}
	st := &primary.state
	changed = e.followLocked(primary, st.id)
	if a := st.current; a != nil && a.positioned && !a.recovery && a.stamp > e.past.newest().last {
		e.past.add(a.insert, a.flush, a.stamp)
	}
	return changed
}

// followLocked makes a server, or none, the one whose samples are kept. Those of
// another one, or of another timeline, are dropped.
func (e *entry) followLocked(s *server, id identity) (changed bool) {
	if s == e.source && id == e.sourceID {
		return false
	}
	e.source, e.sourceID = s, id
	e.past.clear()
	return true
}

// comparableLocked reports whether positions of a replica's answer are positions in
// the WAL of the samples.
func (e *entry) comparableLocked(a *answer) bool {
	return a != nil && a.recovery && a.positioned && e.source != nil && a.id.timeline != 0 &&
		a.id.timeline == e.sourceID.timeline && !foreign(a.id, e.sourceID)
}

func foreign(a, b identity) bool { return a.system != "" && b.system != "" && a.system != b.system }

func (e *entry) coveredLocked(s *server) int64 {
	if a := s.state.current; e.comparableLocked(a) {
		return e.past.covered(a.replay)
	}
	return 0
}

func (e *entry) lagLocked(s *server, now int64) time.Duration {
	st := &s.state
	a := st.newest
	if a == nil || !a.recovery || !a.positioned {
		return 0
	}
	newest := e.past.newest()
	var lag time.Duration
	switch {
	case newest.last == 0: // no samples
		if !a.receiving || a.replay < a.receive {
			lag = a.delay
		}
	case e.comparableLocked(a):
		whole := true
		if lag, whole = e.past.lag(a.replay, now); !whole {
			lag = max(lag, a.delay)
		}
	default:
		lag = max(time.Duration(now-e.past.samples[0].first), a.delay)
	}
	// What is known may be old: of the replica, or of a primary that is there but
	// does not answer.
	if age := time.Duration(now - a.stamp); age > st.grace {
		lag = max(lag, age)
	}
	if newest.last != 0 && e.source != nil && e.source.state.up {
		if age := time.Duration(now - newest.last); age > e.source.state.grace {
			lag = max(lag, age)
		}
	}
	return lag
}
