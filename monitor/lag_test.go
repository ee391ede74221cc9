package monitor

import (
	"testing"
	"time"

	"pgproxy/router"
)

// TestLateComesAndGoesOnce: a replica around the limit is late until it is within
// half of it.
func TestLateComesAndGoesOnce(t *testing.T) {
	l := lagLimit{age: 10 * time.Second, bytes: 1000}
	for _, c := range []struct {
		limit lagLimit
		age   time.Duration
		bytes int64
		was   bool
		want  bool
	}{
		{l, 10 * time.Second, 1000, false, false},
		{l, 11 * time.Second, 0, false, true},
		{l, 0, 1001, false, true},
		{l, 6 * time.Second, 0, true, true},
		{l, 0, 501, true, true},
		{l, 5 * time.Second, 500, true, false},
		{lagLimit{}, time.Hour, 1 << 40, false, false},
		{lagLimit{}, time.Hour, 1 << 40, true, false},
		{lagLimit{age: time.Second}, 0, 1 << 40, false, false},
		{lagLimit{bytes: 10}, time.Hour, 5, true, false},
	} {
		if got := c.limit.exceeded(c.age, c.bytes, c.was); got != c.want {
			t.Errorf("%+v", c)
		}
	}

	b := newTable(t, autos(2)...)
	b.limit = lagLimit{bytes: 100}
	late := func() bool { return b.topology.Load().Servers[1].Late }
	b.primary(0, 1, 1000)
	for _, c := range []struct {
		lsn  uint64
		want bool
	}{{900, false}, {899, true}, {920, true}, {950, false}, {920, false}} {
		b.replica(1, 1, c.lsn)
		if late() != c.want {
			t.Errorf("at %d late is %v", c.lsn, late())
		}
	}
}

// TestSteadySinceTheFirstAnswer: a connection that broke may hide a restart.
func TestSteadySinceTheFirstAnswer(t *testing.T) {
	b := newTable(t, autos(2)...)
	steady := func() int64 { return b.topology.Load().Servers[1].Steady }
	b.primary(0, 1, 100)
	before := router.Nanotime()
	b.replica(1, 1, 100)
	first := steady()
	b.replica(1, 1, 100)
	if first < before || steady() != first {
		t.Errorf("steady since %d, then %d; the first answer came after %d", first, steady(), before)
	}
	b.lost(b.servers[1])
	b.replica(1, 1, 100)
	if steady() <= first {
		t.Error("still steady after the connection was lost")
	}
}

// TestWantedIsCoveredSoon: where a read waits, positions are asked for at once and
// not only each lsn_interval.
func TestWantedIsCoveredSoon(t *testing.T) {
	c := shared(t)
	cfg := configFor(serversOf(c)...)
	cfg.Proxy.LSNInterval, cfg.Proxy.ServerCheckInterval = time.Minute, time.Minute
	w := start(t, cfg)
	w.settled()
	primary := connect(t, c.Primary)
	for range 5 {
		primary.value("CREATE TABLE wanted (a int); DROP TABLE wanted")
		stamp := router.Nanotime()
		w.Want("app", stamp)
		w.Want("app", stamp-1)
		w.Want("nothing", stamp)
		w.untilWithin(10*time.Second, "the write to be covered", func(top *router.Topology) bool {
			known, at := top.Known()
			return top.Servers[1].Covered >= stamp && top.Servers[2].Covered >= stamp && at >= stamp && known.Timeline == 1
		})
	}
}
