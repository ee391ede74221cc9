package monitor

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgproxy/config"
	"pgproxy/router"
)

// gate records what pools are told.
type gate struct{ calls []string }

func (g *gate) Fence(_, addr string) { g.calls = append(g.calls, "fence "+addr) }
func (g *gate) Admit(_, addr string) { g.calls = append(g.calls, "admit "+addr) }
func (g *gate) Leave(_, addr string) { g.calls = append(g.calls, "leave "+addr) }

func (g *gate) Stay(_, addr string, hosts []string, cut bool) {
	g.calls = append(g.calls, fmt.Sprint("stay ", addr, hosts, cut))
}

func (b *table) system(i int, system string, recovery bool) {
	b.answer(i, answer{recovery: recovery, positioned: true, id: identity{system, 1}, insert: 100, flush: 100, replay: 100})
}

func (b *table) halted(want router.Reason) {
	b.t.Helper()
	if got := b.topology.Load().Halted; got != want {
		b.t.Errorf("halted %q, want %q", got, want)
	}
}

func (b *table) writes() int {
	c := b.topology.Load().Choose(router.Policy{}, &router.Request{Plan: &router.Plan{Target: "primary"}})
	return c.Server
}

// The old primary is shut out before the picture with the new one is there, stays
// out when it comes back writable, and may come back as a replica.
func TestOldPrimaryIsFenced(t *testing.T) {
	b, g := newTable(t, autos(2)...), &gate{}
	b.gate = g
	b.primary(0, 1, 100)
	b.replica(1, 1, 100)
	b.fails(0, dead)
	g.calls = nil
	b.primary(1, 2, 100)
	if len(g.calls) == 0 || g.calls[0] != "fence s0" {
		t.Errorf("%q", g.calls)
	}
	b.primary(0, 1, 200)
	b.see(0, router.RoleUnknown, true, 0)
	if b.writes() != 1 {
		t.Errorf("writes go to %d", b.writes())
	}
	b.fails(1, dead)
	b.primary(0, 1, 300)
	if b.writes() != -1 || slices.Contains(g.calls, "admit s0") {
		t.Errorf("writes go to %d, %q", b.writes(), g.calls)
	}
	b.replica(0, 2, 300)
	if !slices.Contains(g.calls, "admit s0") {
		t.Errorf("%q", g.calls)
	}
}

// Two servers that have confirmed that they are the primary are not chosen between
// when one of them is down.
func TestContestLasts(t *testing.T) {
	b := newTable(t, autos(2)...)
	b.primary(0, 1, 100)
	b.primary(1, 1, 100)
	if b.writes() != -1 {
		t.Error("a primary was chosen")
	}
	b.primary(0, 1, 100)
	b.primary(1, 1, 100)
	b.halted(router.HaltedContest)
	b.fails(1, dead)
	b.primary(0, 1, 110)
	b.halted(router.HaltedContest)
	if b.writes() != -1 {
		t.Error("writes alternate")
	}
	b.replica(1, 1, 110)
	b.halted("")
	if b.writes() != 0 {
		t.Errorf("writes go to %d", b.writes())
	}
	// A server that has moved while the old one was taken for up is no contest.
	b.primary(1, 1, 110)
	b.fails(0, dead)
	b.primary(1, 1, 110)
	if b.writes() != 1 {
		t.Errorf("writes go to %d", b.writes())
	}
	// A newer timeline decides.
	b.primary(0, 1, 110)
	b.primary(1, 1, 110)
	b.primary(0, 1, 110)
	b.halted(router.HaltedContest)
	b.primary(0, 2, 120)
	b.halted("")
	if b.writes() != 0 {
		t.Errorf("writes go to %d", b.writes())
	}
}

func TestOneServerUnderTwoAddresses(t *testing.T) {
	b := newTable(t, autos(2)...)
	for i := range 2 {
		b.answer(i, answer{positioned: true, id: identity{"one", 1}, insert: 1, flush: 1, started: 77})
	}
	b.see(0, router.RolePrimary, true, 0)
	b.see(1, router.RoleUnknown, true, 0)
	if b.writes() != 0 {
		t.Errorf("writes go to %d", b.writes())
	}
}

func TestWhichCluster(t *testing.T) {
	t.Run("of most servers", func(t *testing.T) {
		b := newTable(t, autos(3)...)
		b.system(0, "two", false)
		b.system(1, "one", false)
		b.halted(router.HaltedClusters)
		b.see(0, router.RoleUnknown, true, 0)
		b.system(2, "one", true)
		b.see(0, router.RoleUnknown, true, 0)
		b.see(1, router.RolePrimary, true, b.topology.Load().Servers[1].Covered)
		b.halted("")
		// It stays when only the other one is left.
		b.fails(1, dead)
		b.fails(2, dead)
		b.system(0, "two", false)
		if b.writes() != -1 {
			t.Errorf("writes go to %d", b.writes())
		}
	})
	t.Run("of the only primary", func(t *testing.T) {
		b := newTable(t, autos(2)...)
		b.system(0, "two", true)
		b.system(1, "one", false)
		if b.writes() != 1 {
			t.Errorf("writes go to %d", b.writes())
		}
		b.see(0, router.RoleUnknown, true, 0)
	})
	t.Run("undecided", func(t *testing.T) {
		b := newTable(t, autos(2)...)
		b.system(0, "two", false)
		b.system(1, "one", false)
		b.halted(router.HaltedClusters)
		if b.writes() != -1 {
			t.Errorf("writes go to %d", b.writes())
		}
	})
	t.Run("of the file", func(t *testing.T) {
		b := newTable(t, autos(2)...)
		b.named = "one"
		b.system(0, "two", false)
		if b.writes() != -1 {
			t.Errorf("writes go to %d", b.writes())
		}
		b.system(1, "one", false)
		if b.writes() != 1 {
			t.Errorf("writes go to %d", b.writes())
		}
	})
	t.Run("also with fixed roles", func(t *testing.T) {
		b := newTable(t, config.RolePrimary, config.RoleReplica)
		b.system(1, "two", true)
		b.system(0, "one", false)
		b.see(1, router.RoleUnknown, true, 0)
		b.see(0, router.RolePrimary, true, 0)
	})
}

func TestPatroniDecides(t *testing.T) {
	b := newTable(t, autos(2)...)
	say := func(leader string, err string) {
		b.mu.Lock()
		b.patroni = &cluster{leader: leader, at: time.Now(), err: err}
		b.publishLocked()
		b.unlock()
	}
	b.primary(0, 1, 100)
	b.primary(1, 1, 100)
	if b.writes() != -1 {
		t.Errorf("writes go to %d", b.writes())
	}
	say("s1", "")
	if b.writes() != 1 {
		t.Errorf("writes go to %d", b.writes())
	}
	b.see(0, router.RoleUnknown, true, 0)
	say("", "")
	if b.writes() != -1 {
		t.Errorf("writes go to %d", b.writes())
	}
	b.replica(1, 1, 100)
	say("s1", "connection refused") // its own word counts
	if b.writes() != 0 {
		t.Errorf("writes go to %d", b.writes())
	}
}

func TestReplicaThatComesAndGoesIsBanned(t *testing.T) {
	b := newTable(t, autos(3)...)
	b.interval = time.Hour
	b.primary(0, 1, 100)
	b.replica(1, 1, 100)
	b.replica(2, 1, 100)
	up := func() bool { return b.topology.Load().Servers[1].Up }
	b.fails(1, dead)
	b.replica(1, 1, 100)
	if !up() {
		t.Error("banned when it was down once")
	}
	b.fails(1, dead)
	b.replica(1, 1, 100)
	if up() || !b.topology.Load().Servers[2].Up {
		t.Error("not banned when it was down again")
	}
	b.servers[1].state.banned = time.Now()
	b.replica(1, 1, 100)
	if !up() {
		t.Error("banned after its time")
	}
	// Where nothing else is left, a ban counts for nothing.
	b.servers[1].state.banned = time.Now().Add(time.Hour)
	b.fails(0, dead)
	b.fails(2, dead)
	if !up() {
		t.Error("no server is left, and one could serve")
	}
}

func TestRamp(t *testing.T) {
	b := newTable(t, autos(3)...)
	b.ramp = time.Hour
	b.primary(0, 1, 100)
	b.replica(1, 1, 100)
	b.replica(2, 1, 100)
	if w := b.topology.Load().Servers[1].Weight; w != 1 {
		t.Errorf("weight %d at the start", w)
	}
	b.fails(1, dead)
	b.replica(1, 1, 100)
	if s := b.topology.Load().Servers; s[1].Weight != 10 || s[2].Weight != 100 {
		t.Errorf("weights %d and %d", s[1].Weight, s[2].Weight)
	}
	b.servers[1].state.returned = time.Now().Add(-2 * time.Hour)
	b.replica(1, 1, 100)
	if s := b.topology.Load().Servers; s[1].Weight != 1 || s[2].Weight != 1 {
		t.Errorf("weights %d and %d", s[1].Weight, s[2].Weight)
	}
}

func TestEventsAreTheLastThousand(t *testing.T) {
	var v events
	for i := range maxEvents + 5 {
		v.add(Event{Text: fmt.Sprint(i)})
	}
	list := v.list()
	if len(list) != maxEvents || list[0].Text != "5" || list[maxEvents-1].Text != fmt.Sprint(maxEvents+4) {
		t.Errorf("%d events from %s to %s", len(list), list[0].Text, list[len(list)-1].Text)
	}
}

func TestReadCluster(t *testing.T) {
	c, err := readCluster(strings.NewReader(`{"members":[
 {"name":"n1","role":"leader","state":"running","api_url":"http://127.0.0.1:8008/patroni","host":"10.0.0.1","port":5432,"timeline":3},
 {"name":"n2","role":"sync_standby","state":"streaming","api_url":"http://127.0.0.1:8009/patroni","host":"10.0.0.2","port":5433,"timeline":3,"lag":"unknown","tags":{"noloadbalance":true}},
 {"name":"n3","role":"replica","state":"creating replica","api_url":"x"}],
 "scope":"demo","pause":true,"scheduled_switchover":{"at":"2026-11-24T22:00:00+00:00","from":"n1","to":"n2"}}`))
	if err != nil {
		t.Fatal(err)
	}
	all := c.join([]config.Server{{Host: "10.0.0.1", Port: 5432, Weight: 9}})
	if c.leader != "10.0.0.1:5432" || !c.Pause || c.Scheduled.To != "n2" || c.Scheduled.At.IsZero() || len(all) != 2 ||
		all[0].Weight != 9 || all[1].Addr() != "10.0.0.2:5433" || all[1].Weight != 0 {
		t.Errorf("%+v, %+v", c, all)
	}
	for _, bad := range []string{"", "{}", "[]", `{"members":[]}`, "<html>"} {
		if _, err := readCluster(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
