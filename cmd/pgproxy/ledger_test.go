package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/config"
	"pgproxy/monitor"
	"pgproxy/pgtest"
	"pgproxy/router"
)

// The ledger: writers move money between accounts in transactions and remember what
// became of each, readers add all accounts up. What the database holds afterwards
// must agree with what the clients were told.

const (
	accounts = 100
	deposit  = 1000
)

// outcome is what a client knows of its transaction.
type outcome uint8

const (
	committed outcome = iota // it was told so
	failed                   // an error before COMMIT was sent, or in answer to it
	unknown                  // the connection was lost between COMMIT and its answer
)

// complaint is an error that a client got.
type complaint struct {
	err   error
	began time.Time // of the transaction, or of the read
	at    time.Time
	read  bool
}

// ledger is a cluster, a proxy in front of it, and clients at work.
type ledger struct {
	t      *testing.T
	c      *pgtest.Cluster
	app    *app                           // nil: it is another pooler
	dsn    string                         // of the clients
	rest   time.Duration                  // of a client after an error
	relays map[*pgtest.Node]*pgtest.Relay // nil: the proxy connects directly

	stop   context.CancelFunc
	ctx    context.Context
	goes   sync.WaitGroup
	nextID atomic.Int64

	done [2]atomic.Int64 // transactions and reads without an error

	mu         sync.Mutex
	outcomes   map[int64]outcome
	complaints []complaint
	longest    time.Duration // of one transaction or read
	committed  time.Time     // end of the last transaction
	gap        time.Duration // longest time in which none came to its end
}

// ledgerOptions say how a ledger is set up.
type ledgerOptions struct {
	Writers, Readers int
	Relayed          bool                 // the proxy reaches the servers over relays
	Proxy, Database  string               // further configuration
	Cluster          *pgtest.Cluster      // with tables and roles, see ledgerTables; nil: one is started
	Patroni          func(*ledger) string // returns the URL of a Patroni: the servers come from there
}

// fastChecks make a test's proxy notice things soon.
const fastChecks = "server_check_interval = \"200ms\"\nlsn_interval = \"100ms\"\nserver_connect_timeout = \"2s\"\ntcp_user_timeout = \"3s\"\n" +
	"tcp_keepidle = \"1s\"\ntcp_keepintvl = \"1s\"\nlog_connections = false\nlog_disconnections = false\nlog_pooler_errors = false\n"

func newLedger(t *testing.T, opt ledgerOptions) *ledger {
	t.Helper()
	c := opt.Cluster
	if c == nil {
		c = ledgerCluster(t, 2)
	}
	l := &ledger{t: t, c: c, outcomes: make(map[int64]outcome)}
	l.ctx, l.stop = context.WithCancel(context.Background())
	var servers []string
	for _, n := range c.Nodes() {
		addr := n.Addr()
		if opt.Relayed {
			if l.relays == nil {
				l.relays = make(map[*pgtest.Node]*pgtest.Relay)
			}
			l.relays[n] = pgtest.NewRelay(t, addr)
			addr = l.relays[n].Addr()
		}
		servers = append(servers, addr)
	}
	database := opt.Database
	if opt.Patroni != nil {
		servers, database = nil, database+fmt.Sprintf("patroni = [%q]\n", opt.Patroni(l))
	}
	l.app = startProxy(t, servers, fastChecks+opt.Proxy, database)
	l.dsn = l.app.dsn(appUser, "app")
	for i := range opt.Writers {
		l.goes.Go(func() { l.write(i) })
	}
	for range opt.Readers {
		l.goes.Go(l.read)
	}
	t.Cleanup(l.end)
	return l
}

// ledgerCluster starts servers with the ledger's tables and the roles of the tests.
// With two replicas each commit waits for one of them. Settings are names and values
// of further settings.
func ledgerCluster(t *testing.T, replicas int, settings ...string) *pgtest.Cluster {
	t.Helper()
	opt := pgtest.Options{Replicas: replicas, Settings: make(map[string]string)}
	if replicas > 1 {
		opt.Settings["synchronous_standby_names"] = "ANY 1 (primary, replica1, replica2)"
	}
	for i := 0; i < len(settings); i += 2 {
		opt.Settings[settings[i]] = settings[i+1]
	}
	c := pgtest.Start(t, opt)
	ledgerTables(t, c)
	if err := c.WaitCaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// ledgerTables makes the roles and the tables.
func ledgerTables(t *testing.T, c *pgtest.Cluster) {
	t.Helper()
	for _, role := range []string{appUser, adminUser, "monitor"} {
		if err := c.CreateRole(t.Context(), role, role+" secret", ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, sql := range []string{"GRANT pg_monitor TO monitor", "CREATE DATABASE app OWNER app"} {
		if err := c.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Primary.Exec(t.Context(), "app", fmt.Sprintf(`SET ROLE app;
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE transfers (id bigint NOT NULL, source int, target int, amount int);
CREATE INDEX ON transfers (id);
INSERT INTO accounts SELECT i, %d FROM generate_series(1, %d) i`, deposit, accounts)); err != nil {
		t.Fatal(err)
	}
}

// startProxy runs a proxy for database app on these servers, HOST:PORT, until the
// test ends.
func startProxy(t *testing.T, servers []string, proxy, database string) *app {
	t.Helper()
	return startProxyWith(t, servers, proxy, database, appOptions{})
}

func startProxyWith(t *testing.T, servers []string, proxy, database string, opt appOptions) *app {
	t.Helper()
	dir := t.TempDir()
	var list, lines strings.Builder
	for _, role := range []string{appUser, adminUser} {
		fmt.Fprintf(&list, "%q %q\n", role, role+" secret")
	}
	put(t, filepath.Join(dir, "userlist.txt"), list.String())
	for _, addr := range servers {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&lines, "  { host = %q, port = %s },\n", host, port)
	}
	if len(servers) > 0 {
		database += "\nservers = [\n" + lines.String() + "]\n"
	}
	path := filepath.Join(dir, "pgproxy.toml")
	put(t, path, fmt.Sprintf("[proxy]\nlisten_port = 0\nhttp_listen = \"127.0.0.1:0\"\nauth_file = \"userlist.txt\"\nadmin_users = [\"admin\"]\n"+
		"monitor_user = \"monitor\"\nmonitor_password = \"monitor secret\"\n%s\n[databases.app]\n%s\n", proxy, database))
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := newApp(cfg, slog.New(slog.NewTextHandler(testWriter{t}, nil)), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
		defer stop()
		if err := a.close(ctx); err != nil {
			t.Errorf("closing the proxy: %v", err)
		}
		if n := a.server.Stats().Panics; n != 0 {
			t.Errorf("%d panics", n)
		}
	})
	return a
}

// end stops the clients and waits for them.
func (l *ledger) end() {
	l.stop()
	l.goes.Wait()
}

// connect returns a connection of a client, or nil at the end of the test.
func (l *ledger) connect(read bool) *pgconn.PgConn {
	began := time.Now()
	ctx, stop := context.WithTimeout(l.ctx, time.Minute)
	defer stop()
	conn, err := pgconn.Connect(ctx, l.dsn)
	if err != nil {
		if l.ctx.Err() == nil {
			l.complain(complaint{fmt.Errorf("login: %w", err), began, time.Now(), read})
		}
		return nil
	}
	return conn
}

func (l *ledger) complain(c complaint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.complaints = append(l.complaints, c)
}

func (l *ledger) took(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.longest = max(l.longest, d)
}

// statement runs one statement by the simple or the extended protocol.
func statement(ctx context.Context, conn *pgconn.PgConn, extended bool, sql string) (rows [][][]byte, tag string, err error) {
	if extended {
		r := conn.ExecParams(ctx, sql, nil, nil, nil, nil).Read()
		return r.Rows, r.CommandTag.String(), r.Err
	}
	rs, err := conn.Exec(ctx, sql).ReadAll()
	if len(rs) > 0 && rs[0].Err != nil {
		err = rs[0].Err // pgconn's own comes after it
	}
	if err != nil || len(rs) == 0 {
		return nil, "", err
	}
	return rs[0].Rows, rs[0].CommandTag.String(), rs[0].Err
}

// pace bounds how much each client asks for, so that the machine has time for the
// servers.
const pace = 5 * time.Millisecond

// write is a writer: every second one uses the extended protocol.
func (l *ledger) write(number int) {
	var conn *pgconn.PgConn
	defer func() { closeClient(conn) }()
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for ; l.ctx.Err() == nil; <-tick.C {
		if conn == nil || conn.IsClosed() {
			if conn = l.connect(false); conn == nil {
				l.pause()
				continue
			}
		}
		id, began := l.nextID.Add(1), time.Now()
		// Clients end between transactions, so no context: the proxy's timeouts bound it.
		o, err := moveMoney(context.Background(), conn, number%2 == 1, id)
		l.took(time.Since(began))
		l.mu.Lock()
		l.outcomes[id] = o
		l.mu.Unlock()
		if err != nil {
			l.complain(complaint{err, began, time.Now(), false})
			closeClient(conn)
			conn = nil
			l.pause()
			continue
		}
		l.did()
	}
}

// did notes the end of a transaction.
func (l *ledger) did() {
	l.done[0].Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if !l.committed.IsZero() {
		l.gap = max(l.gap, now.Sub(l.committed))
	}
	l.committed = now
}

// pause is what a client does after an error.
func (l *ledger) pause() {
	if l.rest == 0 {
		return
	}
	select {
	case <-time.After(l.rest):
	case <-l.ctx.Done():
	}
}

func closeClient(conn *pgconn.PgConn) {
	if conn == nil {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	_ = conn.Close(ctx)
}

// moveMoney moves money in one transaction.
func moveMoney(ctx context.Context, conn *pgconn.PgConn, extended bool, id int64) (outcome, error) {
	from, to, amount := 1+rand.IntN(accounts), 1+rand.IntN(accounts), 1+rand.IntN(10)
	if from > to { // always locked in the same order
		from, to, amount = to, from, -amount
	}
	for _, sql := range []string{
		"BEGIN",
		fmt.Sprintf("UPDATE accounts SET balance = balance - %d WHERE id = %d", amount, from),
		fmt.Sprintf("UPDATE accounts SET balance = balance + %d WHERE id = %d", amount, to),
		fmt.Sprintf("INSERT INTO transfers VALUES (%d, %d, %d, %d)", id, from, to, amount),
	} {
		if _, _, err := statement(ctx, conn, extended, sql); err != nil {
			return failed, fmt.Errorf("%s: %w", sql[:min(len(sql), 6)], err)
		}
	}
	_, tag, err := statement(ctx, conn, extended, "COMMIT")
	var pe *pgconn.PgError
	switch {
	case err == nil && tag == "COMMIT":
		return committed, nil
	case err == nil:
		return failed, fmt.Errorf("COMMIT was answered with %q", tag)
	case errors.As(err, &pe) && pe.Severity == "ERROR":
		return failed, err
	}
	return unknown, fmt.Errorf("COMMIT: %w", err)
}

// read is a reader.
func (l *ledger) read() {
	var conn *pgconn.PgConn
	defer func() { closeClient(conn) }()
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for ; l.ctx.Err() == nil; <-tick.C {
		if conn == nil || conn.IsClosed() {
			if conn = l.connect(true); conn == nil {
				continue
			}
		}
		began := time.Now()
		rows, _, err := statement(context.Background(), conn, false, "SELECT sum(balance), count(*) FROM accounts")
		l.took(time.Since(began))
		if err != nil {
			l.complain(complaint{err, began, time.Now(), true})
			closeClient(conn)
			conn = nil
			continue
		}
		if got := string(rows[0][0]) + " " + string(rows[0][1]); got != fmt.Sprint(deposit*accounts, accounts) {
			l.t.Errorf("a read saw %s", got)
		}
		l.done[1].Add(1)
	}
}

// proves waits until the catalog has been read, so that reads are known to be such.
func (l *ledger) proves() {
	l.t.Helper()
	eventually(l.t, 30*time.Second, "the catalog to be read", func() bool {
		c := l.app.monitor.Catalogs()
		return len(c) == 1 && c[0].State == monitor.CatalogRead
	})
}

// flows waits until writers and readers get on.
func (l *ledger) flows() {
	l.t.Helper()
	was := [2]int64{l.done[0].Load(), l.done[1].Load()}
	eventually(l.t, 30*time.Second, "transactions and reads", func() bool {
		return l.done[0].Load() >= was[0]+20 && l.done[1].Load() >= was[1]+20
	})
}

// take returns the complaints so far and the longest pause, and forgets them.
func (l *ledger) take() ([]complaint, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list, longest := l.complaints, l.longest
	l.complaints, l.longest = nil, 0
	return list, longest
}

// primary returns the node that takes writes by the proxy's own view.
func (l *ledger) primary() *pgtest.Node {
	l.t.Helper()
	var found *pgtest.Node
	eventually(l.t, 30*time.Second, "a primary", func() bool {
		for _, n := range l.c.Nodes() {
			if s := l.server(n); s.Up && s.Role == router.RolePrimary {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

// server is the proxy's picture of a node; of one that it does not have, nothing.
func (l *ledger) server(n *pgtest.Node) router.Server {
	addr := n.Addr()
	if r := l.relays[n]; r != nil {
		addr = r.Addr()
	}
	servers := l.app.monitor.Topology("app").Servers
	if i := slices.IndexFunc(servers, func(s router.Server) bool { return s.Addr == addr }); i >= 0 {
		return servers[i]
	}
	return router.Server{}
}

// successor returns the replica that has received most.
func (l *ledger) successor(old *pgtest.Node) (next, other *pgtest.Node) {
	l.t.Helper()
	var most uint64
	for _, n := range l.c.Nodes() {
		if n == old {
			continue
		}
		text, err := n.Value(l.t.Context(), "postgres", "SELECT pg_last_wal_receive_lsn() - '0/0'")
		if err != nil {
			l.t.Fatal(err)
		}
		at, _ := strconv.ParseUint(text, 10, 64)
		if next == nil || at > most {
			next, other, most = n, next, at
		} else {
			other = n
		}
	}
	return next, other
}

// succeed promotes one replica and makes the other one follow it.
func (l *ledger) succeed(next, other *pgtest.Node) {
	l.t.Helper()
	if err := next.Promote(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
	if err := other.Follow(next); err != nil {
		l.t.Fatal(err)
	}
}

// rejoin makes the old primary a replica of the new one.
func (l *ledger) rejoin(old, next *pgtest.Node) {
	l.t.Helper()
	if err := old.Clone(l.t.Context(), next); err != nil {
		l.t.Fatal(err)
	}
	eventually(l.t, 30*time.Second, "the old primary as a replica", func() bool {
		s := l.server(old)
		return s.Up && s.Role == router.RoleReplica && s.Covered > 0
	})
}

// audit stops the clients and compares their outcomes with the database.
func (l *ledger) audit() {
	l.t.Helper()
	l.end()
	l.auditOn(l.primary())
	if l.done[1].Load() == 0 {
		l.t.Error("nothing was read")
	}
}

// auditOn is audit with the primary given, of clients that have ended.
func (l *ledger) auditOn(p *pgtest.Node) {
	l.t.Helper()
	rows, err := p.Query(l.t.Context(), "app", "SELECT id, count(*) FROM transfers GROUP BY id")
	if err != nil {
		l.t.Fatal(err)
	}
	there := make(map[int64]int)
	for _, r := range rows {
		id, _ := strconv.ParseInt(r[0], 10, 64)
		there[id], _ = strconv.Atoi(r[1])
	}
	sum, err := p.Value(l.t.Context(), "app", "SELECT sum(balance) FROM accounts")
	if err != nil {
		l.t.Fatal(err)
	}
	if sum != fmt.Sprint(deposit*accounts) {
		l.t.Errorf("the sum is %s, it was %d", sum, deposit*accounts)
	}
	var count [3]int
	for id, o := range l.outcomes {
		count[o]++
		switch n := there[id]; {
		case n > 1, o == committed && n != 1, o == failed && n != 0:
			l.t.Errorf("transfer %d has outcome %d and is there %d times", id, o, n)
		}
	}
	l.t.Logf("%d committed, %d failed, %d unknown; %d reads", count[committed], count[failed], count[unknown], l.done[1].Load())
	if count[committed] == 0 {
		l.t.Error("nothing was committed")
	}
}

// console runs a command on the proxy's console.
func (l *ledger) console(sql string) error {
	conn, err := pgconn.Connect(l.t.Context(), l.app.dsn(adminUser, "pgproxy"))
	if err != nil {
		return err
	}
	defer closeClient(conn)
	_, err = conn.Exec(l.t.Context(), sql).ReadAll()
	return err
}
