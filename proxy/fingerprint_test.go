package proxy_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// The fingerprint of a session is all of its state that SQL can see. Whatever one
// client does, the next one on the same server connection has that of a fresh
// login; and the client itself has that of one that does the same on a connection
// of its own.

// viewSQL is what a session looks like to itself: what must be the same as on a
// direct connection. pg_settings does not show every setting, and those of plpgsql
// only where it has been loaded.
const viewSQL = `SELECT string_agg(x, E'\n' ORDER BY x) FROM (
	SELECT 'setting ' || name || '=' || coalesce(setting, '') AS x FROM pg_settings WHERE name NOT LIKE 'plpgsql.%' AND name NOT IN ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')
	UNION ALL SELECT 'custom ' || n || '=' || coalesce(current_setting(n, true), '') FROM unnest('{my.own,my.other}'::text[]) n
	UNION ALL SELECT 'user ' || current_user || ' ' || session_user || ' ' || current_setting('role')
	UNION ALL SELECT 'schemas ' || current_schemas(false)::text) s`

// fingerprintSQL adds what of a session must be nobody else's.
const fingerprintSQL = `SELECT string_agg(x, E'\n' ORDER BY x) FROM (
	SELECT 'setting ' || name || '=' || coalesce(setting, '') AS x FROM pg_settings WHERE name NOT LIKE 'plpgsql.%'
	UNION ALL SELECT 'custom ' || n || '=' || coalesce(current_setting(n, true), '') FROM unnest('{my.own,my.other}'::text[]) n
	UNION ALL SELECT 'user ' || current_user || ' ' || session_user || ' ' || current_setting('role')
	UNION ALL SELECT 'schemas ' || current_schemas(false)::text
	UNION ALL SELECT 'statement ' || name FROM pg_prepared_statements
	UNION ALL SELECT 'cursor ' || name FROM pg_cursors WHERE name <> ''
	UNION ALL SELECT 'channel ' || c FROM pg_listening_channels() c
	UNION ALL SELECT 'lock ' || locktype || objid::text FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'
	UNION ALL SELECT 'temporary ' || relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
	UNION ALL SELECT 'temporary type ' || typname FROM pg_type WHERE typnamespace = pg_my_temp_schema()) s`

// sight runs a query of one value that may have line breaks.
func sight(t testing.TB, c *pgtest.RawClient, sql string) string {
	t.Helper()
	c.Send(pgtest.Query(sql))
	msgs := c.ReadUntilReady()
	for _, m := range msgs {
		if m.Type == wire.DataRow {
			return string(m.Values()[0])
		}
	}
	return "no answer: " + pgtest.Trace(msgs)
}

// differences are the lines that only one of two texts has.
func differences(a, b string) string {
	count := make(map[string]int)
	for _, l := range strings.Split(a, "\n") {
		count[l]++
	}
	for _, l := range strings.Split(b, "\n") {
		count[l]--
	}
	var out []string
	for l, n := range count {
		switch {
		case n > 0:
			out = append(out, "- "+l)
		case n < 0:
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}

// stateOp is something that changes the state of a session.
type stateOp struct {
	name string
	send []byte // what ends in one ReadyForQuery for each of syncs
	n    int    // ReadyForQuery that it has
}

func simpleOp(sql string) stateOp { return stateOp{sql, pgtest.Query(sql), 1} }

func extendedOp(sql string, params ...string) stateOp {
	return stateOp{"extended: " + sql + " " + strings.Join(params, " "), pgtest.Extended(sql, params...), 1}
}

// stateOps are the operations of the proof.
var stateOps = func() (ops []stateOp) {
	for _, sql := range []string{
		"SET work_mem = '9MB'", "SET SESSION work_mem TO 9216", "SET LOCAL work_mem = '9MB'", "RESET work_mem", "SET work_mem TO DEFAULT",
		"SET work_mem = 'nonsense'", "SET no_such_setting = 1",
		"SET search_path = pg_catalog", "SET search_path = ''", `SET search_path = "A b", public`, "SET LOCAL search_path = pg_catalog",
		"SET client_encoding = LATIN1", "SET TIME ZONE 'Asia/Tokyo'", "SET TIME ZONE INTERVAL '+03:30' HOUR TO MINUTE", "SET datestyle = 'SQL, DMY'",
		"SET intervalstyle = iso_8601", "SET bytea_output = escape", "SET extra_float_digits = 0", "SET standard_conforming_strings = off",
		"SET application_name = 'it''s \\ me'", "SET default_transaction_isolation = serializable",
		"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, DEFERRABLE", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
		"SET statement_timeout = '33s'", "SET idle_in_transaction_session_timeout = 44000", "SET synchronous_commit = off", "SET enable_seqscan = off",
		"SET random_page_cost = 1.5", "SET my.own = 'x y'", "SET LOCAL my.own = 'local'", "RESET my.own", "RESET ALL", "DISCARD ALL",
		"SET ROLE boss", "SET ROLE NONE", "RESET ROLE", "SET SESSION AUTHORIZATION alice", "RESET SESSION AUTHORIZATION", "SET log_statement = 'mod'",
		"SET work_mem = '8MB'; SET my.own = 'two'; SET enable_sort = off", "SET work_mem = '7MB'; SELECT 1/0",
		"SELECT set_config('work_mem', '6MB', false)", "SELECT set_config('my.own', 'by function', false)", "SELECT set_config('my.own', 'by function', true)",
		"SELECT set_config(lower('WORK_MEM'), '5MB', false)", "SELECT set_config(name, '3MB', false) FROM pg_settings WHERE name IN ('work_mem', 'maintenance_work_mem')",
		"DO $$ BEGIN PERFORM set_config('work_mem', '11MB', false); SET enable_hashagg = off; END $$",
		"DO $$ BEGIN CREATE TEMP TABLE in_do (i int); PERFORM pg_advisory_lock(pg_backend_pid()); END $$",
		"CREATE TEMP TABLE temp_one (i int)", "CREATE TEMP TABLE temp_two (i int) ON COMMIT DROP", "CREATE TEMP SEQUENCE temp_seq", "DROP TABLE IF EXISTS pg_temp.temp_one",
		"CREATE TYPE pg_temp.temp_type AS ENUM ('a')", "SELECT 1 AS i INTO TEMP temp_three", "DISCARD TEMP",
		"DECLARE held CURSOR WITH HOLD FOR SELECT 1", "DECLARE plain CURSOR FOR SELECT 1", "CLOSE ALL",
		"SELECT pg_advisory_lock(pg_backend_pid())", "SELECT pg_try_advisory_lock_shared(pg_backend_pid())", "SELECT pg_advisory_xact_lock(pg_backend_pid())", "SELECT pg_advisory_unlock(pg_backend_pid())",
		"SELECT pg_advisory_unlock_all()", "LISTEN news", "UNLISTEN *", "PREPARE mine AS SELECT 'mine'", "DEALLOCATE mine", "DEALLOCATE ALL",
		"PREPARE sets AS SELECT set_config('my.other', 'prepared', false)", "EXECUTE sets",
		"SELECT hidden_setting()", "LOAD 'plpgsql'",
	} {
		ops = append(ops, simpleOp(sql))
	}
	for _, v := range [][]string{
		{"SET work_mem = '12MB'"},
		{"SET ROLE boss"},
		{"SET my.own = 'extended'"},
		{"RESET ALL"},
		{"CREATE TEMP TABLE temp_four (i int)"},
		{"SELECT set_config($1, $2, false)", "work_mem", "13MB"},
		{"SELECT set_config($1, $2, false)", "my.own", "bound"},
		{"SELECT set_config('my.other', $1, $2)", "maybe", "false"},
		{"SELECT pg_advisory_lock(pg_backend_pid(), $1)", "75"},
	} {
		ops = append(ops, extendedOp(v[0], v[1:]...))
	}
	return append(ops,
		stateOp{"fast path", pgtest.FunctionCall(2078, "work_mem", "14MB", "f"), 1},
		stateOp{"two in a batch", pgtest.Join(execute("SET work_mem = '15MB'"), execute("SET my.own = 'batch'"), pgtest.Sync()), 1},
		stateOp{"error behind", pgtest.Join(execute("SET work_mem = '16MB'"), execute("SELECT 1/0"), pgtest.Sync()), 1},
		stateOp{"error in front", pgtest.Join(execute("SELECT 1/0"), execute("SET work_mem = '17MB'"), pgtest.Sync()), 1},
		stateOp{"pipeline", pgtest.Join(execute("SET work_mem = '18MB'"), pgtest.Sync(), execute("SELECT 1/0"), pgtest.Sync(), execute("SET my.own = 'behind'"), pgtest.Sync()), 3},
		stateOp{"block in a pipeline", pgtest.Join(execute("BEGIN"), pgtest.Sync(), execute("SET work_mem = '19MB'"), pgtest.Sync(), execute("COMMIT"), pgtest.Sync()), 3},
		stateOp{"queries in one write", pgtest.Join(pgtest.Query("SET work_mem = '20MB'"), pgtest.Query("SELECT 1"), pgtest.Query("RESET enable_sort")), 3},
		stateOp{"named statement", pgtest.Join(pgtest.Parse("named", "SELECT 'named'"), pgtest.Sync()), 1},
		stateOp{"unnamed statement", pgtest.Join(pgtest.Parse("", "SELECT 'unnamed'"), pgtest.Sync()), 1},
	)
}()

// controlOps open, end and divide transactions.
var controlOps = []stateOp{
	simpleOp("BEGIN"), simpleOp("COMMIT"), simpleOp("ROLLBACK"), simpleOp("SAVEPOINT s"), simpleOp("ROLLBACK TO s"), simpleOp("RELEASE s"),
	simpleOp("SELECT 1/0"), simpleOp("COMMIT AND CHAIN"), extendedOp("BEGIN"), extendedOp("ROLLBACK"), simpleOp("SELECT 1"),
}

// endings are how a session's transaction ends, or the session itself.
var endings = []struct {
	name       string
	begin, end []stateOp
	leave      func(*pgtest.RawClient)
}{
	{"alone", nil, nil, nil},
	{"commit", controlOps[:1], controlOps[1:2], nil},
	{"rollback", controlOps[:1], controlOps[2:3], nil},
	{"abort", controlOps[:1], []stateOp{simpleOp("SELECT 1/0"), simpleOp("COMMIT")}, nil},
	{"savepoint", []stateOp{controlOps[0], controlOps[3]}, []stateOp{controlOps[4], controlOps[1]}, nil},
	{"disconnect", controlOps[:1], nil, (*pgtest.RawClient).Reset},
	{"disconnect outside", nil, nil, (*pgtest.RawClient).Close},
	{"terminate", controlOps[:1], nil, (*pgtest.RawClient).Terminate},
}

// lab compares sessions through a proxy with sessions on its server.
type lab struct {
	h      *harness
	server string
	victim *pgtest.RawClient
	fresh  string // the fingerprint of a login
}

func newLab(t testing.TB, more string) *lab {
	c := realCluster(t)
	labOnce.Do(func() {
		if err := c.Exec(t.Context(), "CREATE ROLE lab_boss; GRANT lab_boss TO alice; CREATE FUNCTION hidden_setting() RETURNS text LANGUAGE plpgsql AS "+
			"$$ BEGIN PERFORM set_config('work_mem', '21MB', false); RETURN 'done'; END $$"); err != nil {
			t.Fatal(err)
		}
	})
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1\nsession_audit_ratio = 1\n" + more,
		Database: fmt.Sprintf("user = %q\npassword = %q", pgtest.Superuser, pgtest.SuperuserPassword),
	})
	l := &lab{h: h, server: addrs(c)[0], victim: h.Client(t)}
	l.fresh = sight(t, l.victim, fingerprintSQL)
	return l
}

var labOnce sync.Once

// direct logs in to the server itself, as the proxy does.
func (l *lab) direct(t testing.TB) *pgtest.RawClient {
	d := pgtest.DialRaw(t, l.server)
	d.Login(pgtest.Superuser, pgtest.SuperuserPassword, "database", "postgres")
	return d
}

// run has a client and a direct connection do the same, and looks at what they and
// the victim have of it. It returns what is wrong.
func (l *lab) run(t testing.TB, ops []stateOp, leave func(*pgtest.RawClient)) string {
	t.Helper()
	a, d := l.h.Client(t), l.direct(t)
	defer a.Close()
	defer d.Terminate()
	hidden := false
	for _, op := range ops {
		hidden = hidden || strings.Contains(op.name, "hidden_setting")
		var got [2]string
		for i, c := range []*pgtest.RawClient{a, d} {
			c.Send(fixed(op))
			for range op.n {
				got[i] += outcome(c.ReadUntilReady())
			}
		}
		if got[0] != got[1] {
			return op.name + " ended with" + got[0] + ", on a direct connection with" + got[1]
		}
	}
	if leave != nil {
		leave(a)
		return l.look(t)
	}
	// Its own picture, on a connection that somebody else has had where possible.
	for _, c := range []*pgtest.RawClient{a, d} {
		c.Send(pgtest.Query("ROLLBACK"))
		c.ReadUntilReady()
	}
	if l.free(t) {
		if bad := l.look(t); bad != "" {
			return bad
		}
	}
	if hidden { // what no statement has announced does not follow the client
		a.Terminate()
		return l.look(t)
	}
	if diff := differences(sight(t, d, viewSQL), sight(t, a, viewSQL)); diff != "" {
		return "the client's own view (- direct, + through the proxy):\n" + diff
	}
	a.Terminate()
	return l.look(t)
}

// outcome is what a message has come to: SQLSTATEs, tags and the state of the
// transaction.
func outcome(msgs []pgtest.Msg) (out string) {
	for _, m := range msgs {
		switch m.Type {
		case wire.ErrorResponse, wire.CommandComplete, wire.ReadyForQuery:
			out += " " + m.String()
		}
	}
	return out
}

// fixed is the bytes of an operation with the name of the role that the lab has.
func fixed(op stateOp) []byte {
	if !strings.Contains(op.name, "boss") {
		return op.send
	}
	if sql, ok := strings.CutPrefix(op.name, "extended: "); ok {
		return pgtest.Extended(strings.ReplaceAll(strings.TrimSpace(sql), "boss", "lab_boss"))
	}
	return pgtest.Query(strings.ReplaceAll(op.name, "boss", "lab_boss"))
}

// free waits until it is known whether the server connection is pinned, and
// reports whether it is not.
func (l *lab) free(t testing.TB) bool {
	t.Helper()
	pinned := false
	eventually(t, 10*time.Second, "the server connection at rest", func() bool {
		list := l.h.Pools.Servers()
		if len(list) == 0 {
			return true
		}
		pinned = list[0].Pinned != 0
		return list[0].Owed == 0 && (pinned || !list[0].Active)
	})
	return !pinned
}

// look compares what the victim sees with a fresh login.
func (l *lab) look(t testing.TB) string {
	t.Helper()
	if diff := differences(l.fresh, sight(t, l.victim, fingerprintSQL)); diff != "" {
		return "the next client (- fresh, + what it sees):\n" + diff
	}
	return ""
}

// TestFingerprint does every operation and ends in every way.
func TestFingerprint(t *testing.T) {
	l := newLab(t, "")
	for _, end := range endings {
		t.Run(end.name, func(t *testing.T) {
			for _, op := range stateOps {
				ops := append(append(append([]stateOp(nil), end.begin...), op), end.end...)
				if bad := l.run(t, ops, end.leave); bad != "" {
					t.Errorf("%s\n%s", op.name, bad)
				}
			}
		})
	}
}

// TestFingerprintRandom does sequences made up at random: PGPROXY_FINGERPRINTS of
// them. PGPROXY_SEED gives the first one's number.
func TestFingerprintRandom(t *testing.T) {
	count, seed := 300, uint64(time.Now().UnixNano())
	if n, err := strconv.Atoi(os.Getenv("PGPROXY_FINGERPRINTS")); err == nil {
		count = n
	}
	if n, err := strconv.ParseUint(os.Getenv("PGPROXY_SEED"), 10, 64); err == nil {
		seed = n
	}
	l := newLab(t, "")
	failed := 0
	for i := range uint64(count) {
		r := rand.New(rand.NewPCG(seed+i, 0))
		var ops []stateOp
		var names []string
		for range 1 + r.IntN(8) {
			from := stateOps
			if r.IntN(2) == 0 {
				from = controlOps
			}
			op := from[r.IntN(len(from))]
			ops = append(ops, op)
			names = append(names, op.name)
		}
		leave := endings[r.IntN(len(endings))].leave
		if bad := l.run(t, ops, leave); bad != "" {
			t.Errorf("PGPROXY_SEED=%d, leaves %t:\n  %s\n%s", seed+i, leave != nil, strings.Join(names, "\n  "), bad)
			if failed++; failed == 10 {
				t.Fatal("and so on")
			}
		}
	}
}
