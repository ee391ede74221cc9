package monitor

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/router"
)

// The promise of causal reads: what was acknowledged at a moment can be read on
// every server that covers the moment.
func TestAcknowledgedWritesAreVisibleWhereCovered(t *testing.T) {
	c := shared(t)
	w := start(t, configFor(serversOf(c)...))
	keepPromise(t, w, c, 200)
}

// The same where the primary answers late and the replica replays late, so that
// a stamp or a position from the wrong side of a question shows.
func TestAcknowledgedWritesAreVisibleWhereCoveredSlowly(t *testing.T) {
	c := pgtest.Start(t, pgtest.Options{Replicas: 1})
	withChecker(t, c)
	for _, sql := range []string{"ALTER SYSTEM SET recovery_min_apply_delay = '40ms'", "SELECT pg_reload_conf()"} {
		if err := c.Replicas[0].Exec(t.Context(), "postgres", sql); err != nil {
			t.Fatal(err)
		}
	}
	relay := pgtest.NewRelay(t, c.Primary.Addr())
	relay.Set(pgtest.ToClient, pgtest.Fault{Latency: 30 * time.Millisecond})
	w := start(t, configFor(config.Server{Host: "127.0.0.1", Port: relay.Port()}, serverOf(c.Replicas[0])))
	keepPromise(t, w, c, 100)
}

// keepPromise writes, waits for a replica to cover the write, and reads there.
func keepPromise(t *testing.T, w *watched, c *pgtest.Cluster, rounds int) {
	t.Helper()
	w.settled()
	primary := connect(t, c.Primary)
	replicas := []*session{nil}
	for _, n := range c.Replicas {
		replicas = append(replicas, connect(t, n))
	}
	primary.value("DROP TABLE IF EXISTS promise; CREATE TABLE promise (id int PRIMARY KEY, filling text)")

	// Another client writes all the time, now and then much at once.
	ctx, stop := context.WithCancel(t.Context())
	noise := connect(t, c.Primary)
	quiet := make(chan struct{})
	go func() {
		defer close(quiet)
		for i := 0; ctx.Err() == nil; i++ {
			sql := fmt.Sprintf("INSERT INTO promise SELECT -%d * 1000 - g, repeat('x', 300) FROM generate_series(1, %d) g", i+1, 1+i%100)
			if _, err := noise.pc.Exec(ctx, sql).ReadAll(); err != nil {
				return
			}
		}
	}()
	defer func() {
		stop()
		<-quiet
	}()

	reads := 0
	for i := range rounds {
		// Every third commit is acknowledged before it is flushed.
		commit := "on"
		if i%3 == 0 {
			commit = "off"
		}
		if i == rounds*2/3 { // from here on the primary is idle between the writes
			stop()
			<-quiet
		}
		id := strconv.Itoa(i + 1)
		primary.value("SET synchronous_commit = " + commit + "; INSERT INTO promise VALUES (" + id + ", repeat('y', " + strconv.Itoa(i*7%3000) + "))")
		stamp := router.Nanotime()
		covers := func(s router.Server) bool { return s.Role == router.RoleReplica && s.Covered >= stamp }
		top := w.until("write "+id+" to be covered", func(top *router.Topology) bool {
			for _, s := range top.Servers {
				if covers(s) {
					return true
				}
			}
			return false
		})
		for k, s := range top.Servers {
			if !covers(s) {
				continue
			}
			reads++
			if got := replicas[k].value("SELECT id FROM promise WHERE id = " + id); got != id {
				t.Fatalf("write %s is covered by replica %d and not visible there", id, k)
			}
		}
	}
	if reads < rounds {
		t.Errorf("%d reads in %d rounds", reads, rounds)
	}
}
