package auth

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// Limiter remembers failed logins, so that passwords cannot be guessed fast, and
// what is refused costs no hashing. It forgets them in time.
//
// Three counts decide about a login. Failures as one user from one address are for
// auth_failure_limit; so a client with a wrong password, or an attacker, keeps out
// nobody who comes from elsewhere, and no other user of its own host. Failures from
// one address as whoever, which are for several times as many, keep out from there
// only users that have not logged in from there before. Failures as one user from
// wherever only delay its logins from addresses from which it has not logged in
// before: to refuse those would let an attacker lock a user out.
//
// Any number of goroutines may use it.
type Limiter struct {
	now  func() int64
	seed maphash.Seed // so that nobody can make names collide

	mu      sync.Mutex
	failing map[uint64]int64 // guarded by mu; when all failures of a count will be forgotten
	good    map[uint64]int64 // guarded by mu; when a user last logged in from an address
	swept   int64            // guarded by mu; when failing was last looked through
}

// Limit is what a Limiter allows.
type Limit struct {
	Failures int           // as one user from one address; 0: no limit
	Period   time.Duration // after which so many are forgotten, one after the other
}

// Verdict is what happens to a login.
type Verdict uint8

// The verdicts.
const (
	Allowed Verdict = iota
	Delayed         // it waits for LoginDelay first
	Refused
)

// LoginDelay is how long a login waits whose user many try to be.
const LoginDelay = time.Second

const (
	wider      = 5              // times the limit are for one address, and for one user
	maxFailing = 50_000         // counts that are kept
	maxGood    = 50_000         // users and addresses that are kept
	goodFor    = 24 * time.Hour // since the last login
)

// NewLimiter makes a Limiter; now is a clock in nanoseconds that never goes back.
func NewLimiter(now func() int64) *Limiter {
	return &Limiter{now: now, seed: maphash.MakeSeed(), failing: make(map[uint64]int64), good: make(map[uint64]int64)}
}

// counted are the keys of the three counts of a login.
type counted struct{ both, addr, user uint64 }

// key hashes a login. Of an IPv6 address the first 64 bits count, which one host
// has for itself; an invalid one stands for Unix sockets.
func (l *Limiter) key(addr netip.Addr, user string) counted {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		net, _ := addr.Prefix(64)
		addr = net.Addr()
	}
	from := addr.String()
	hash := func(kind byte, a, b string) uint64 {
		var h maphash.Hash
		h.SetSeed(l.seed)
		_ = h.WriteByte(kind)
		_, _ = h.WriteString(a)
		_ = h.WriteByte(0)
		_, _ = h.WriteString(b)
		return h.Sum64()
	}
	return counted{both: hash('b', from, user), addr: hash('a', from, ""), user: hash('u', "", user)}
}

// Check says what happens to a login.
func (l *Limiter) Check(lim Limit, addr netip.Addr, user string) Verdict {
	if lim.Failures <= 0 {
		return Allowed
	}
	k := l.key(addr, user)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if l.spentLocked(k.both, lim, 1, now) {
		return Refused
	}
	if at, ok := l.good[k.both]; ok && now-at < int64(goodFor) {
		return Allowed
	}
	switch {
	case l.spentLocked(k.addr, lim, wider, now):
		return Refused
	case l.spentLocked(k.user, lim, wider, now):
		return Delayed
	}
	return Allowed
}

// step is the time in which one failure is forgotten of a count that takes several
// times the limit.
func (lim Limit) step(times int) int64 { return max(1, int64(lim.Period)/int64(lim.Failures*times)) }

// spentLocked reports whether a count has reached its limit.
func (l *Limiter) spentLocked(key uint64, lim Limit, times int, now int64) bool {
	n := int64(lim.Failures * times)
	return l.failing[key]-now > (n-1)*lim.step(times)
}

// Failed counts a login whose password was wrong. It reports whether that was the
// last one that the user may fail from this address.
func (l *Limiter) Failed(lim Limit, addr netip.Addr, user string) bool {
	if lim.Failures <= 0 {
		return false
	}
	k := l.key(addr, user)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.sweepLocked(now)
	before := l.spentLocked(k.both, lim, 1, now)
	for _, c := range []struct {
		key   uint64
		times int
	}{{k.both, 1}, {k.addr, wider}, {k.user, wider}} {
		// Never more than the limit: what several attempts at once exceed it by
		// keeps nobody out for longer.
		most := now + int64(lim.Failures*c.times)*lim.step(c.times)
		l.failing[c.key] = min(max(l.failing[c.key], now)+lim.step(c.times), most)
	}
	return !before && l.spentLocked(k.both, lim, 1, now)
}

// Passed notes a login that went well, and forgives the user what failed from this
// address before.
func (l *Limiter) Passed(lim Limit, addr netip.Addr, user string) {
	if lim.Failures <= 0 {
		return
	}
	k := l.key(addr, user)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.failing, k.both)
	if _, known := l.good[k.both]; !known && len(l.good) >= maxGood {
		dropOne(l.good)
	}
	l.good[k.both] = l.now()
}

// sweepLocked makes room for the counts of one more failure: those that are over
// go, but that is looked for at most once a second, else any.
func (l *Limiter) sweepLocked(now int64) {
	if len(l.failing)+3 <= maxFailing {
		return
	}
	if now-l.swept > int64(time.Second) {
		l.swept = now
		for k, until := range l.failing {
			if until <= now {
				delete(l.failing, k)
			}
		}
	}
	for len(l.failing)+3 > maxFailing {
		dropOne(l.failing)
	}
}

// dropOne deletes some entry.
func dropOne(m map[uint64]int64) {
	for k := range m {
		delete(m, k)
		return
	}
}
