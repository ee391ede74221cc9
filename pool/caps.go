package pool

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/config"
)

// slice is how long a connection stays with its pool although others wait for it,
// where these have as many, or cannot all have one: a connection that changes
// pools costs a login.
const slice = 200 * time.Millisecond

// caps counts server connections against the limits that span pools, each for one
// server: max_user_connections, max_db_connections and max_host_connections. Who
// counts towards them has a share. A place that comes free goes to the share that
// has the fewest connections of those that wait for it, and a share that has more
// than such a one gives up a connection in its favour: so each gets an equal part,
// but none more than it wants (max-min fairness).
//
// caps owns its own mutex, which may be taken under a pool's and is held for
// nothing else.
type caps struct {
	now    func() int64
	goes   *sync.WaitGroup
	hungry atomic.Bool // starved is not empty, or a limit is exceeded

	// Guarded by mu.
	mu      sync.Mutex
	tallies map[limitKey]tally
	holders map[*share]bool // who has connections
	starved []*share        // who waits for a place: who has the fewest first, then who has waited longest
	excess  bool            // a limit was lowered below what there is
	turn    int             // whose turn it is in press
}

// limitKey is what a limit counts: the connections to a server, in all or of one
// database or user.
type limitKey struct {
	server string
	kind   limitKind
	name   string
}

// limitKind is one of the limits. A claimant lacks the first of them that leaves no
// room, and gets places in this order.
type limitKind uint8

const (
	ofUser limitKind = iota
	ofDatabase
	ofHost
	limitKinds
)

// tally counts connections: those that have a place, and how many of these are
// being closed.
type tally struct{ used, leaving int }

// share is the part that one claimant has of the limits.
type share struct {
	// Set at construction.
	of   claimant
	keys [limitKinds]limitKey

	// Guarded by caps.mu.
	most   [limitKinds]int // 0: no limit
	held   int             // connections, those that are being opened as well, those that are being closed not
	gained int64           // when it got the last of them
	hungry bool            // it is in starved
}

// claimant opens connections in its share's places. No lock of caps is held when
// it is called.
type claimant interface {
	// wake is called when there may be room for one that has waited: it takes the
	// place, or says that it does not want it (withdraw).
	wake()
	// yield closes a connection that nobody uses; with fresh, also one that was in
	// use within the last slice. It reports whether there was one.
	yield(fresh bool) bool
}

func newCaps(now func() int64, goes *sync.WaitGroup) *caps {
	return &caps{now: now, goes: goes, tallies: make(map[limitKey]tally), holders: make(map[*share]bool)}
}

// newShare makes the share of what connects with a key.
func newShare(of claimant, k Key) *share {
	return &share{of: of, keys: [...]limitKey{
		ofUser:     {k.Server, ofUser, k.User},
		ofDatabase: {k.Server, ofDatabase, k.Database},
		ofHost:     {k.Server, ofHost, ""},
	}}
}

// sharedLimits are the limits for a key by a configuration.
func sharedLimits(cfg *config.Config, k Key) (most [limitKinds]int) {
	most[ofUser], most[ofHost] = cfg.Proxy.MaxUserConnections, cfg.Proxy.MaxHostConnections
	if u := cfg.Users[k.User]; u != nil && u.MaxUserConnections > 0 {
		most[ofUser] = u.MaxUserConnections
	}
	if db, ok := cfg.Database(k.Database); ok {
		most[ofDatabase] = db.MaxDBConnections
	}
	return most
}

// limit sets the limits of a share.
func (c *caps) limit(s *share, most [limitKinds]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.most = most
}

// take counts one more connection of s, unless a limit forbids it or another who
// waits comes first. If the connection is wanted, and not only spare, s waits as
// well then and is woken when there may be room.
func (c *caps) take(s *share, wanted bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lacksLocked(s, nil, false) < 0 && c.lacksLocked(s, c.aheadLocked(s, wanted), false) < 0 {
		for _, k := range s.keys {
			t := c.tallies[k]
			t.used++
			c.tallies[k] = t
		}
		s.held++
		s.gained = c.now()
		c.holders[s] = true
		c.feedLocked(s)
		return true
	}
	if wanted && !s.hungry {
		s.hungry = true
		c.starved = append(c.starved, s)
		c.hungryLocked()
		c.goes.Add(1)
		go func() {
			defer c.goes.Done()
			c.makeRoom(s)
		}()
	}
	return false
}

// lacksLocked returns which limit leaves s no room beside what is reserved for
// others, or -1. With soon the places of connections that are being closed are free.
func (c *caps) lacksLocked(s *share, reserved map[limitKey]int, soon bool) int {
	for i, k := range s.keys {
		t := c.tallies[k]
		n := t.used + reserved[k]
		if soon {
			n -= t.leaving
		}
		if s.most[i] > 0 && n >= s.most[i] {
			return i
		}
	}
	return -1
}

// reserveLocked reserves the places that s can have, as far as the first that it
// cannot, and returns that one's index, or -1.
func (c *caps) reserveLocked(s *share, reserved map[limitKey]int, soon bool) int {
	n := c.lacksLocked(s, reserved, soon)
	for i, k := range s.keys {
		if i == n {
			break
		}
		reserved[k]++
	}
	return n
}

// aheadLocked returns what is reserved for those who come before s.
func (c *caps) aheadLocked(s *share, wanted bool) map[limitKey]int {
	if len(c.starved) == 0 {
		return nil
	}
	c.sortLocked()
	reserved := make(map[limitKey]int)
	for _, x := range c.starved {
		if wanted && (x == s || x.held > s.held) {
			break
		}
		c.reserveLocked(x, reserved, false)
	}
	return reserved
}

// sortLocked brings those who have the fewest to the front.
func (c *caps) sortLocked() {
	slices.SortStableFunc(c.starved, func(x, y *share) int { return cmp.Compare(x.held, y.held) })
}

// feedLocked takes s out of those who wait.
func (c *caps) feedLocked(s *share) {
	if s.hungry {
		s.hungry = false
		c.starved = slices.DeleteFunc(c.starved, func(x *share) bool { return x == s })
		c.hungryLocked()
	}
}

func (c *caps) hungryLocked() { c.hungry.Store(len(c.starved) > 0 || c.excess) }

// leave is told that a connection of s is being closed. Its place stays taken until
// free.
func (c *caps) leave(s *share) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range s.keys {
		t := c.tallies[k]
		t.leaving++
		c.tallies[k] = t
	}
	if s.held--; s.held == 0 {
		delete(c.holders, s)
	}
	if c.excess {
		c.excessLocked()
	}
}

// free counts a connection out for which leave was called.
func (c *caps) free(s *share) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range s.keys {
		t := c.tallies[k]
		if t.used, t.leaving = t.used-1, t.leaving-1; t.used == 0 {
			delete(c.tallies, k)
		} else {
			c.tallies[k] = t
		}
	}
	c.wakeLocked()
}

// withdraw takes s out of those who wait: it cannot use a place, or need not.
func (c *caps) withdraw(s *share) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.hungry {
		c.feedLocked(s)
		c.wakeLocked()
	}
}

// wakeLocked lets those try again for whom there is room.
func (c *caps) wakeLocked() {
	if len(c.starved) == 0 {
		return
	}
	c.sortLocked()
	reserved := make(map[limitKey]int)
	var again []claimant
	for _, x := range c.starved {
		if c.reserveLocked(x, reserved, false) < 0 {
			again = append(again, x.of)
		}
	}
	if len(again) == 0 {
		return
	}
	c.goes.Add(1)
	go func() {
		defer c.goes.Done()
		for _, x := range again {
			x.wake()
		}
	}()
}

// claims reports whether a connection of s that has come free is to be closed, in
// favour of another or because there are too many. idle says that nobody of its own
// waits for it.
func (c *caps) claims(s *share, idle bool) bool {
	if !c.hungry.Load() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.excess && c.overLocked(s) {
		return true
	}
	c.sortLocked()
	if len(c.starved) == 0 || !c.dueLocked(s, c.starved[0], idle) {
		return false // nobody has fewer
	}
	reserved := make(map[limitKey]int)
	for _, x := range c.starved {
		if x == s || !c.dueLocked(s, x, idle) {
			return false
		}
		if i := c.reserveLocked(x, reserved, true); i >= 0 && s.keys[i] == x.keys[i] {
			return true
		}
	}
	return false
}

// dueLocked reports whether s owes x a connection that has come free: it has two
// more, or one more that it does not need or that x, which has none, is to have in
// its turn. What it does not need for now and is its part it may keep for a slice:
// see press.
func (c *caps) dueLocked(s, x *share, idle bool) bool {
	switch n := s.held - x.held; {
	case n >= 2, n == 1 && idle:
		return true
	case n == 1:
		return x.held == 0 && c.now()-s.gained > int64(slice)
	}
	return false
}

// makeRoom has an unused connection closed that stands in the way of x, if there is
// one: of who has the most first, and who has no more than x only if it has not
// been used for a slice.
func (c *caps) makeRoom(x *share) {
	c.mu.Lock()
	lack := -1
	reserved := make(map[limitKey]int)
	c.sortLocked()
	for _, y := range c.starved {
		if n := c.reserveLocked(y, reserved, true); y == x {
			lack = n
			break
		}
	}
	if lack < 0 {
		c.mu.Unlock()
		return // there is room, or will be
	}
	var from []*share
	for s := range c.holders {
		if s != x && s.keys[lack] == x.keys[lack] {
			from = append(from, s)
		}
	}
	slices.SortFunc(from, func(s, t *share) int { return cmp.Compare(t.held, s.held) })
	more := len(slices.DeleteFunc(slices.Clone(from), func(s *share) bool { return s.held <= x.held }))
	c.mu.Unlock()
	for i, s := range from {
		if s.of.yield(i < more) {
			return
		}
	}
}

// pressed is for how many of those who wait press looks at a time.
const pressed = 16

// press makes room for those who wait, as connections that were in use a moment ago
// may be unused by now: for some of them each time, in turn. It is called each tick.
func (c *caps) press() {
	if !c.hungry.Load() {
		return
	}
	c.mu.Lock()
	c.sortLocked()
	var some []*share
	for i := range min(len(c.starved), pressed) {
		some = append(some, c.starved[(c.turn+i)%len(c.starved)])
	}
	c.turn += len(some)
	c.mu.Unlock()
	for _, x := range some {
		c.makeRoom(x)
	}
}

// trim closes what is not used and exceeds a limit that was lowered; what is used
// follows when it comes free.
func (c *caps) trim() {
	c.mu.Lock()
	c.excessLocked()
	var over []*share
	for s := range c.holders {
		if c.overLocked(s) {
			over = append(over, s)
		}
	}
	slices.SortFunc(over, func(s, t *share) int { return cmp.Compare(t.held, s.held) })
	c.mu.Unlock()
	for _, s := range over {
		for c.exceeds(s) && s.of.yield(true) {
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wakeLocked() // others may have more room now
}

func (c *caps) exceeds(s *share) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.overLocked(s)
}

// overLocked reports whether there are more connections than a limit of s allows,
// without those that are being closed.
func (c *caps) overLocked(s *share) bool {
	for i, k := range s.keys {
		if t := c.tallies[k]; s.most[i] > 0 && t.used-t.leaving > s.most[i] {
			return true
		}
	}
	return false
}

func (c *caps) excessLocked() {
	c.excess = false
	for s := range c.holders {
		c.excess = c.excess || c.overLocked(s)
	}
	c.hungryLocked()
}

// Host is what is connected to one server.
type Host struct {
	Server  string // its address
	Most    int    // max_host_connections; 0: no limit
	Used    int    // connections, with those that are being opened or closed
	Waiting int    // pools and others that wait for a place
}

// Hosts returns a copy for each server that has connections, in order of their
// addresses.
func (s *Set) Hosts() []Host {
	s.mu.RLock()
	most := s.cfg.Proxy.MaxHostConnections
	s.mu.RUnlock()
	c := s.caps
	c.mu.Lock()
	waiting := make(map[string]int)
	for _, x := range c.starved {
		if i := c.lacksLocked(x, nil, false); i >= 0 && limitKind(i) == ofHost {
			waiting[x.keys[ofHost].server]++
		}
	}
	var out []Host
	for k, t := range c.tallies {
		if k.kind == ofHost {
			out = append(out, Host{Server: k.server, Most: most, Used: t.used, Waiting: waiting[k.server]})
		}
	}
	c.mu.Unlock()
	slices.SortFunc(out, func(a, b Host) int { return cmp.Compare(a.Server, b.Server) })
	return out
}
