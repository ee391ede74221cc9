package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/pgtest"
	"pgproxy/router"
)

// The causality checker: sessions count up and read counters through the proxy,
// over a primary, a healthy replica, one that is always behind, and one whose replay
// is paused again and again. No read may show less than the session's consistency
// promises, nor less than the session has seen before.

var causality = flag.Duration("causality", 4*time.Second, "how long the causality checker runs")

// counters is how many there are.
const counters = 20

// causal is what all sessions of a run share.
type causal struct {
	t     *testing.T
	c     *pgtest.Cluster
	app   *app
	acked [counters]atomic.Int64 // the highest value of each that any session was told it has written

	reads, writes, wrong atomic.Int64

	breaks bool         // servers come and go: errors are no news, a session begins anew
	quiet  sync.RWMutex // held for a write; whoever holds it alone knows that none is under way
}

// complain reports an error of a client.
func (k *causal) complain(format string, args ...any) {
	if !k.breaks {
		k.t.Errorf(format, args...)
	}
}

func TestCausality(t *testing.T) {
	c := pgtest.Start(t, pgtest.Options{Replicas: 3})
	if err := prepareCluster(c); err != nil {
		t.Fatal(err)
	}
	healthy, delayed, paused := c.Replicas[0], c.Replicas[1], c.Replicas[2]
	if err := delayed.Exec(t.Context(), "postgres", "ALTER SYSTEM SET recovery_min_apply_delay = '150ms'"); err != nil {
		t.Fatal(err)
	}
	if err := delayed.Exec(t.Context(), "postgres", "SELECT pg_reload_conf()"); err != nil {
		t.Fatal(err)
	}
	makeCounters(t, c)
	if err := healthy.WaitCaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Each level has an entry of its own, all for the same database.
	var more strings.Builder
	for _, e := range []struct{ name, lines string }{
		{"global", "consistency = \"global\"\n"},
		{"waiting", "consistency = \"global\"\ncausal_wait = \"200ms\"\n"},
		{"balanced", "load_balance = \"round_robin\"\nprimary_reads = \"share\"\n"},
	} {
		fmt.Fprintf(&more, "\n[databases.%s]\ndbname = \"app\"\n%sservers = [\n", e.name, e.lines)
		for _, n := range c.Nodes() {
			fmt.Fprintf(&more, "  { host = %q, port = %d },\n", n.Host, n.Port)
		}
		more.WriteString("]\n")
	}
	k := &causal{t: t, c: c, app: startApp(t, c, "", more.String())}
	ctx, stop := context.WithTimeout(t.Context(), *causality)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { k.pause(ctx, paused) })
	for i := range 24 {
		database := []string{"app", "app", "app", "global", "waiting", "balanced"}[i%6]
		pauses := 30 * time.Millisecond
		if i%12 == 5 || i%12 == 3 {
			pauses = 0 // as fast as it can
		}
		wg.Go(func() { k.session(ctx, database, strings.Contains("global waiting", database), pauses, i%2 == 0) })
	}
	wg.Wait()
	t.Logf("%d reads, %d writes, %d wrong", k.reads.Load(), k.writes.Load(), k.wrong.Load())
	if k.reads.Load() == 0 || k.writes.Load() == 0 {
		t.Error("nothing was done")
	}
	share := k.shares()
	least := 0.5 // of a short run, on a machine that may be busy
	if *causality >= time.Minute {
		least = 0.8
	}
	if share["app"] < least {
		t.Errorf("replicas served %.0f %% of the reads at consistency session, want at least %.0f %%", 100*share["app"], 100*least)
	}
}

// makeCounters makes the table.
func makeCounters(t *testing.T, c *pgtest.Cluster) {
	t.Helper()
	if err := c.Primary.Exec(t.Context(), "app", "CREATE TABLE counters (id int PRIMARY KEY, v bigint NOT NULL) WITH (fillfactor = 50); "+
		"GRANT ALL ON counters TO app; INSERT INTO counters SELECT i, 0 FROM generate_series(0, "+strconv.Itoa(counters-1)+") i"); err != nil {
		t.Fatal(err)
	}
}

// TestCausalityThroughFailover: the promises hold when a replica becomes the primary
// and the other one follows it: positions of the old timeline count for nothing.
func TestCausalityThroughFailover(t *testing.T) {
	c := pgtest.Start(t, pgtest.Options{Replicas: 2})
	if err := prepareCluster(c); err != nil {
		t.Fatal(err)
	}
	if err := c.Exec(t.Context(), "GRANT pg_monitor TO monitor"); err != nil {
		t.Fatal(err)
	}
	makeCounters(t, c)
	if err := c.WaitCaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	var more strings.Builder
	more.WriteString("\n[databases.global]\ndbname = \"app\"\nconsistency = \"global\"\nservers = [\n")
	for _, n := range c.Nodes() {
		fmt.Fprintf(&more, "  { host = %q, port = %d },\n", n.Host, n.Port)
	}
	more.WriteString("]\n")
	k := &causal{t: t, c: c, breaks: true, app: startApp(t, c, "server_check_interval = \"200ms\"\nlsn_interval = \"50ms\"", more.String())}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			for ctx.Err() == nil {
				k.session(ctx, []string{"app", "global"}[i%2], i%2 == 1, 10*time.Millisecond, i%4 < 2)
			}
		})
	}
	written := func(n int64) {
		t.Helper()
		from := k.writes.Load()
		eventually(t, 60*time.Second, "writes", func() bool { return k.writes.Load() >= from+n })
	}
	written(50)
	old, promoted, other := c.Primary, c.Replicas[0], c.Replicas[1]
	k.quiet.Lock() // what is acknowledged is to survive
	err := c.WaitCaughtUp(t.Context())
	if err == nil {
		err = old.Stop("fast")
	}
	if err == nil {
		err = promoted.Promote(t.Context())
	}
	k.quiet.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	written(50) // on the new timeline, while the other replica is still on the old one
	if err := other.Follow(promoted); err != nil {
		t.Fatal(err)
	}
	written(100)
	stop()
	wg.Wait()
	t.Logf("%d reads, %d writes, %d wrong", k.reads.Load(), k.writes.Load(), k.wrong.Load())
	k.shares()
}

// TestTokenBetweenServices: who has a token reads what its giver has written, where
// nothing else is promised.
func TestTokenBetweenServices(t *testing.T) {
	c := appCluster(t)
	// It is there before either entry reads the catalog: DDL through one entry is not
	// known to another at once.
	err := c.Primary.Exec(t.Context(), "app", "CREATE TABLE IF NOT EXISTS carried (i int); GRANT ALL ON carried TO "+appUser)
	if err == nil {
		err = c.WaitCaughtUp(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	var more strings.Builder
	more.WriteString("\n[databases.other]\ndbname = \"app\"\nconsistency = \"eventual\"\ncausal_wait = \"5s\"\nservers = [\n")
	for _, n := range c.Nodes() {
		fmt.Fprintf(&more, "  { host = %q, port = %d },\n", n.Host, n.Port)
	}
	more.WriteString("]\n")
	a := startApp(t, c, "", more.String())
	connect := func(database string) *pgconn.PgConn {
		pc, err := pgconn.Connect(t.Context(), a.dsn(appUser, database))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = pc.Close(context.Background()) })
		return pc
	}
	writer, reader := connect("app"), connect("other")
	value := func(pc *pgconn.PgConn, sql string) string {
		t.Helper()
		r, err := pc.Exec(t.Context(), sql).ReadAll()
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		if len(r[0].Rows) == 0 {
			return ""
		}
		return string(r[0].Rows[0][0])
	}
	value(writer, "DELETE FROM carried; INSERT INTO carried VALUES (0)")
	replica := 0
	for i := range 40 {
		value(writer, fmt.Sprintf("UPDATE carried SET i = %d", i))
		value(reader, "SET pgproxy.lsn = '"+value(writer, "SHOW pgproxy.lsn")+"'")
		if got := value(reader, "SELECT i FROM carried"); got != strconv.Itoa(i) {
			t.Fatalf("read %s where %d was written: %s", got, i, value(reader, "SHOW pgproxy.route"))
		}
		if strings.HasPrefix(value(reader, "SHOW pgproxy.route"), "replica") {
			replica++
		}
	}
	if replica < 20 {
		t.Errorf("replicas served %d of 40", replica)
	}
}

// session reads and writes, nine to one, with random pauses. everybody says that
// its reads must show what anybody was told to be written.
func (k *causal) session(ctx context.Context, database string, everybody bool, pauses time.Duration, extended bool) {
	pc, err := pgconn.Connect(ctx, k.app.dsn(appUser, database))
	if err != nil {
		if ctx.Err() == nil {
			k.complain("connect: %v", err)
		}
		return
	}
	defer func() {
		end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = pc.Close(end)
	}()
	run := func(sql string) (int64, error) {
		var rows [][][]byte
		if extended {
			r := pc.ExecParams(context.Background(), sql, nil, nil, nil, nil).Read()
			if r.Err != nil {
				return 0, r.Err
			}
			rows = r.Rows
		} else {
			r, err := pc.Exec(context.Background(), sql).ReadAll()
			if err != nil {
				return 0, err
			}
			rows = r[0].Rows
		}
		if len(rows) != 1 {
			return 0, fmt.Errorf("%d rows", len(rows))
		}
		return strconv.ParseInt(string(rows[0][0]), 10, 64)
	}
	var seen [counters]int64
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(time.Duration(rand.Int64N(2*int64(pauses) + 1)))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		id := rand.IntN(counters)
		if rand.IntN(10) == 0 {
			k.quiet.RLock()
			v, err := run(fmt.Sprintf("UPDATE counters SET v = v + 1 WHERE id = %d RETURNING v", id))
			k.quiet.RUnlock()
			if err != nil {
				k.complain("%s: write: %v", database, err)
				return
			}
			for old := k.acked[id].Load(); old < v && !k.acked[id].CompareAndSwap(old, v); old = k.acked[id].Load() {
			}
			seen[id] = v
			k.writes.Add(1)
			continue
		}
		least, why := seen[id], "the session had seen or written"
		if written := k.acked[id].Load(); everybody && written > least {
			least, why = written, "was acknowledged"
		}
		v, err := run(fmt.Sprintf("SELECT v FROM counters WHERE id = %d", id))
		if err != nil {
			k.complain("%s: read: %v", database, err)
			return
		}
		k.reads.Add(1)
		if v < least {
			if k.wrong.Add(1) < 20 {
				route, _ := pc.Exec(context.Background(), "SHOW pgproxy.route").ReadAll()
				k.t.Errorf("%s: read %d where %d %s: %s", database, v, least, why, route[0].Rows[0][0])
			}
		}
		seen[id] = max(seen[id], v)
	}
}

// pause pauses and resumes a replica's replay.
func (k *causal) pause(ctx context.Context, n *pgtest.Node) {
	for ctx.Err() == nil {
		for _, f := range []func(context.Context) error{n.PauseReplay, n.ResumeReplay} {
			if err := f(context.Background()); err != nil {
				k.t.Errorf("pause or resume: %v", err)
				return
			}
			timer := time.NewTimer(time.Duration(200+rand.IntN(600)) * time.Millisecond)
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
			timer.Stop()
		}
	}
	_ = n.ResumeReplay(context.Background())
}

// shares reports the part of the reads that replicas served, by entry.
func (k *causal) shares() map[string]float64 {
	replica, all := make(map[string]uint64), make(map[string]uint64)
	for _, r := range k.app.server.Routes() {
		k.t.Logf("%8d %-8s %s", r.Count, r.Database, r.Reason)
		if strings.Contains(string(r.Reason), "not proved a read") {
			continue
		}
		all[r.Database] += r.Count
		if r.Role == router.RoleReplica {
			replica[r.Database] += r.Count
		}
	}
	out := make(map[string]float64)
	for name, n := range all {
		out[name] = float64(replica[name]) / float64(n)
		k.t.Logf("%s: replicas served %.1f %% of %d reads", name, 100*out[name], n)
	}
	return out
}
