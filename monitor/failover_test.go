package monitor

import (
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/router"
)

func TestFailover(t *testing.T) {
	c := pgtest.Start(t, pgtest.Options{Replicas: 2})
	withChecker(t, c)
	if err := c.CreateRole(t.Context(), "ordinary", "ordinary", ""); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitCaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := start(t, configFor(serversOf(c)...))
	w.settled()
	cfg := configFor(serversOf(c)...)
	cfg.Databases["app"].MonitorUser, cfg.Databases["app"].MonitorPassword = "ordinary", "ordinary"
	ordinary := start(t, cfg)
	ordinary.settled()
	old, promoted, other := c.Nodes()[0], c.Nodes()[1], c.Nodes()[2]

	// The primary stops: its waiters wake, and the replicas stay up.
	woken := make(chan time.Time, 1)
	go func() {
		w.until("the primary to be down", func(top *router.Topology) bool { return !top.Servers[0].Up })
		woken <- time.Now()
	}()
	if err := old.Stop("fast"); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	if late := (<-woken).Sub(stopped); late > 3*time.Second {
		t.Errorf("down was published %v after the server had stopped", late)
	}
	top := w.Topology("app")
	if !top.Servers[1].Up || !top.Servers[2].Up || top.Servers[1].Lag != 0 || top.Servers[2].Lag != 0 {
		t.Errorf("%+v", top.Servers)
	}

	// One replica is promoted. The other one does not follow it yet: whatever it
	// has replayed, it covers nothing of the new primary.
	if err := promoted.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.until("the new primary", func(top *router.Topology) bool {
		return top.Servers[1].Role == router.RolePrimary && top.Servers[1].Up
	})
	connect(t, promoted).value("CREATE TABLE new_reign (a int)")
	stamp := router.Nanotime()
	w.until("the other replica to lag", func(top *router.Topology) bool {
		if top.Servers[2].Covered != 0 {
			t.Fatalf("it covers %d, the write was at %d", top.Servers[2].Covered, stamp)
		}
		return top.Servers[2].Lag > 500*time.Millisecond
	})

	// Now it follows, which shows at once to a role that may see statistics.
	if err := other.Follow(promoted); err != nil {
		t.Fatal(err)
	}
	w.until("the other replica to follow", func(top *router.Topology) bool { return top.Servers[2].Covered >= stamp && top.Servers[2].Lag == 0 })

	// To another role it shows with the next restartpoint.
	if got := ordinary.Topology("app").Servers[2].Covered; got != 0 {
		t.Errorf("covered %d on a timeline that nobody told", got)
	}
	for _, n := range []*pgtest.Node{promoted, other} {
		if err := n.Exec(t.Context(), "postgres", "CHECKPOINT"); err != nil {
			t.Fatal(err)
		}
		if n == promoted {
			if err := other.WaitCaughtUp(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	ordinary.until("the restartpoint", func(top *router.Topology) bool { return top.Servers[2].Covered >= stamp && top.Servers[2].Lag == 0 })

	// The old primary comes back as one, and is not used.
	if err := old.Start(); err != nil {
		t.Fatal(err)
	}
	top = w.until("the old primary to be up", func(top *router.Topology) bool { return top.Servers[0].Up })
	if top.Servers[0].Role != router.RoleUnknown || top.Servers[1].Role != router.RolePrimary {
		t.Errorf("%+v", top.Servers)
	}

	// Rebuilt, it is a replica like any other.
	if err := old.Clone(t.Context(), promoted); err != nil {
		t.Fatal(err)
	}
	top = w.settled()
	if top.Servers[0].Role != router.RoleReplica {
		t.Errorf("%+v", top.Servers)
	}
	if w.log.count("newer timeline") != 1 {
		t.Error("the fence was not logged once")
	}
}

func TestFrozenServer(t *testing.T) {
	c := pgtest.Start(t, pgtest.Options{})
	withChecker(t, c)
	w := start(t, configFor(serverOf(c.Primary)))
	w.settled()
	began := time.Now()
	if err := c.Primary.Freeze(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Primary.Thaw() })
	w.until("down", func(top *router.Topology) bool { return !top.Servers[0].Up })
	if took := time.Since(began); took < 2*minTimeout-minTimeout/4 {
		t.Errorf("down after %v: one timeout is not enough", took)
	}
	if st := w.Status()[0]; st.Failures < 2 || st.Role != router.RolePrimary {
		t.Errorf("%+v", st)
	}
	if err := c.Primary.Thaw(); err != nil {
		t.Fatal(err)
	}
	w.settled()
}

// A short silence is not a failure.
func TestFrozenForAMoment(t *testing.T) {
	c := pgtest.Start(t, pgtest.Options{})
	withChecker(t, c)
	w := start(t, configFor(serverOf(c.Primary)))
	w.settled()
	if err := c.Primary.Freeze(); err != nil {
		t.Fatal(err)
	}
	checks := w.Status()[0].Checks
	w.nextCheck(checks) // it has timed out once
	if err := c.Primary.Thaw(); err != nil {
		t.Fatal(err)
	}
	w.untilStatus("an answer", func(st Status) bool { return st.Checks > checks+1 && st.LastError == "" })
	if st := w.Status()[0]; !st.Up || w.log.count("is down") != 0 {
		t.Errorf("%+v", st)
	}
}

// A standby that crashes may come back with less than it had shown.
func TestCrashedReplicaCoversNothing(t *testing.T) {
	c := pgtest.Start(t, pgtest.Options{Replicas: 1})
	withChecker(t, c)
	w := start(t, configFor(serversOf(c)...))
	w.settled()
	if err := c.Replicas[0].Kill(); err != nil {
		t.Fatal(err)
	}
	top := w.until("down", func(top *router.Topology) bool { return !top.Servers[1].Up })
	if top.Servers[1].Covered != 0 {
		t.Errorf("%+v", top.Servers[1])
	}
	if err := c.Replicas[0].Start(); err != nil {
		t.Fatal(err)
	}
	w.settled()
}
