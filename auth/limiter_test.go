package auth

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

var (
	attacker = netip.MustParseAddr("203.0.113.9")
	office   = netip.MustParseAddr("198.51.100.7")
	someLim  = Limit{Failures: 5, Period: time.Minute}
)

// inTime runs a story with a Limiter on the bubble's clock.
func inTime(t *testing.T, story func(*testing.T, *Limiter)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		story(t, NewLimiter(func() int64 { return int64(time.Since(start)) }))
	})
}

func (l *Limiter) fail(n int, addr netip.Addr, user string) {
	for range n {
		l.Failed(someLim, addr, user)
	}
}

// TestLimiterForgets: the limit is reached with so many failures and not earlier,
// and one after the other is forgotten.
func TestLimiterForgets(t *testing.T) {
	inTime(t, func(t *testing.T, l *Limiter) {
		for i := range 5 {
			if v := l.Check(someLim, attacker, "alice"); v != Allowed {
				t.Fatalf("verdict %d after %d failures", v, i)
			}
			if last := l.Failed(someLim, attacker, "alice"); last != (i == 4) {
				t.Errorf("failure %d: last is %t", i+1, last)
			}
		}
		if l.Check(someLim, attacker, "alice") != Refused {
			t.Error("not refused after five failures")
		}
		l.fail(100, attacker, "alice") // which no login could be
		<-time.After(11 * time.Second)
		if l.Check(someLim, attacker, "alice") != Refused {
			t.Error("forgotten before its time")
		}
		<-time.After(2 * time.Second)
		if l.Check(someLim, attacker, "alice") != Allowed {
			t.Error("a failure is forgotten after a fifth of the period")
		}
		if l.fail(1, attacker, "alice"); l.Check(someLim, attacker, "alice") != Refused {
			t.Error("one more was allowed, not two")
		}
		<-time.After(time.Hour)
		if l.fail(4, attacker, "alice"); l.Check(someLim, attacker, "alice") != Allowed {
			t.Error("not everything is forgotten after an hour")
		}
	})
}

// TestLimiterHitsNobodyElse: an attacker, or a client with a wrong password, costs
// others nothing but a delay (S-34).
func TestLimiterHitsNobodyElse(t *testing.T) {
	inTime(t, func(t *testing.T, l *Limiter) {
		want := func(v Verdict, addr netip.Addr, user, what string) {
			t.Helper()
			if got := l.Check(someLim, addr, user); got != v {
				t.Errorf("%s: verdict %d, want %d", what, got, v)
			}
		}
		l.Passed(someLim, office, "alice")
		l.fail(5, office, "broken") // an application whose password was changed
		want(Refused, office, "broken", "the one that fails")
		want(Allowed, office, "alice", "another user of the same host")
		want(Allowed, office, "carol", "one that comes from there for the first time")
		want(Allowed, attacker, "broken", "the same user from elsewhere")

		for i := range 30 { // names from one address
			l.fail(1, attacker, fmt.Sprint("user", i))
		}
		want(Refused, attacker, "user99", "a further name from that address")
		want(Allowed, office, "user99", "the same name from elsewhere")

		for i := range 100 { // one name from many addresses
			l.fail(1, netip.AddrFrom4([4]byte{10, 0, byte(i), 1}), "alice")
		}
		want(Allowed, office, "alice", "the user from where it has logged in before")
		want(Delayed, netip.MustParseAddr("192.0.2.1"), "alice", "the user from elsewhere")
		<-time.After(25 * time.Hour)
		want(Allowed, netip.MustParseAddr("192.0.2.1"), "alice", "a day later")

		// Who gets it right was not guessing.
		l.fail(4, office, "dave")
		l.Passed(someLim, office, "dave")
		l.fail(4, office, "dave")
		want(Allowed, office, "dave", "four failures behind a login")
	})
}

// TestLimiterAddresses: a host with IPv6 has 2^64 addresses, and one with IPv4 may
// be written in two ways.
func TestLimiterAddresses(t *testing.T) {
	inTime(t, func(t *testing.T, l *Limiter) {
		l.fail(5, netip.MustParseAddr("2001:db8:1:2::1"), "alice")
		if l.Check(someLim, netip.MustParseAddr("2001:db8:1:2:ffff::2"), "alice") != Refused {
			t.Error("another address of the same /64 is another host")
		}
		if l.Check(someLim, netip.MustParseAddr("2001:db8:1:3::1"), "alice") != Allowed {
			t.Error("another /64 is the same host")
		}
		l.fail(5, netip.MustParseAddr("::ffff:203.0.113.9"), "alice")
		if l.Check(someLim, attacker, "alice") != Refused {
			t.Error("an IPv4 address in IPv6 is another host")
		}
		l.fail(5, netip.Addr{}, "alice")
		if l.Check(someLim, netip.Addr{}, "alice") != Refused {
			t.Error("Unix sockets have no limit")
		}
	})
}

// TestLimiterIsBounded: names that nobody has proved a right to take no more memory
// than there is for them, and known addresses are not forgotten for theirs.
func TestLimiterIsBounded(t *testing.T) {
	inTime(t, func(t *testing.T, l *Limiter) {
		l.Passed(someLim, office, "alice")
		for i := range 2 * maxFailing {
			l.Failed(someLim, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), fmt.Sprint("user", i))
		}
		if n := len(l.failing); n > maxFailing {
			t.Errorf("%d counts", n)
		}
		if len(l.good) != 1 {
			t.Errorf("%d known addresses", len(l.good))
		}
		<-time.After(time.Hour)
		if l.fail(1, attacker, "alice"); len(l.failing) != 3 {
			t.Errorf("%d counts are kept that say nothing any more", len(l.failing))
		}
		for i := range maxGood + 10 {
			l.Passed(someLim, attacker, fmt.Sprint("user", i))
		}
		if n := len(l.good); n > maxGood {
			t.Errorf("%d known addresses", n)
		}
	})
}

// TestNoLimiter: 0 is no limit, and keeps nothing.
func TestNoLimiter(t *testing.T) {
	l := NewLimiter(func() int64 { return 0 })
	for range 100 {
		l.Failed(Limit{}, attacker, "alice")
		l.Passed(Limit{}, attacker, "alice")
	}
	if l.Check(Limit{}, attacker, "alice") != Allowed || len(l.failing)+len(l.good) != 0 {
		t.Error("a limit of 0 is one")
	}
}
