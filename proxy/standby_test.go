package proxy_test

import (
	"strings"
	"testing"

	"pgproxy/pgtest"
)

// TestWhatStandbysRefuse: whatever a hot standby refuses, with whichever SQLSTATE, is
// answered by the primary. What no hint can send to a standby never goes there.
func TestWhatStandbysRefuse(t *testing.T) {
	c := realCluster(t)
	setup(t, c, `CREATE TABLE IF NOT EXISTS refused_unlogged (i int); ALTER TABLE refused_unlogged SET UNLOGGED;
		CREATE TABLE IF NOT EXISTS refused_table (i int); CREATE SEQUENCE IF NOT EXISTS refused_numbers;
		GRANT ALL ON ALL TABLES IN SCHEMA public TO public; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO public`)
	standby := pgtest.DialRaw(t, c.Nodes()[1].Addr())
	standby.Login(testUser, testPassword, "database", "postgres")
	h := twoServers(t, c, "")
	r := h.Client(t)
	for i, v := range []struct{ sql, code string }{
		{"SELECT nextval('refused_numbers')", "25006"},
		{"SELECT setval('refused_numbers', 5)", "25006"},
		{"SELECT pg_notify('a', 'b')", "25006"},
		{"SELECT * FROM refused_table FOR UPDATE", "25006"},
		{"SELECT * FROM refused_table FOR KEY SHARE", "25006"},
		{"SELECT * FROM refused_unlogged", "0A000"},
		{"SELECT txid_current()", "25006"},
		{"SELECT pg_current_xact_id()", "25006"},
		{"SELECT pg_current_wal_lsn()", "55000"},
		{"SELECT lo_create(0)", "XX000"},
		{"SELECT pg_logical_emit_message(false, 'a', 'b')", "XX000"},
	} {
		standby.Send(pgtest.Query(v.sql))
		if got := pgtest.Trace(standby.ReadUntilReady()); !strings.Contains(got, "E("+v.code+")") {
			t.Errorf("%s on the standby: %s", v.sql, got)
		}
		for k := range 3 {
			got := r.Query("/* pgproxy: target=replica */ " + v.sql)
			if !strings.HasSuffix(got, "C(SELECT 1) Z(I)") && !strings.HasSuffix(got, "C(SELECT 0) Z(I)") || strings.Contains(got, "E(") {
				t.Errorf("%s: %s", v.sql, got)
			}
			if st := h.Server.Stats(); st.Rerun.Refused != uint64(i+1) || st.Healed != uint64(i+1) {
				t.Errorf("%s, time %d: %+v", v.sql, k, st.Rerun)
			}
		}
	}
	before := h.Server.Stats().Rerun.Refused
	for _, v := range []struct{ sql, want string }{
		{"LISTEN refused", "C(LISTEN) Z(I)"},
		{"UNLISTEN *", "C(UNLISTEN) Z(I)"},
		{"NOTIFY refused", "C(NOTIFY) Z(I)"},
		{"CREATE TEMP TABLE refused_temp (i int)", "C(CREATE TABLE) Z(I)"},
		{"SELECT pg_advisory_lock(98)", "T D() C(SELECT 1) Z(I)"},
		{"BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", "C(BEGIN) Z(T)"},
		{"SELECT 1", "T D(1) C(SELECT 1) Z(T)"},
		{"COMMIT", "C(COMMIT) Z(I)"},
		{"DISCARD ALL", "C(DISCARD ALL) Z(I)"},
		{"TRUNCATE refused_table", "C(TRUNCATE TABLE) Z(I)"},
		{"DO $$ BEGIN PERFORM nextval('refused_numbers'); END $$", "C(DO) Z(I)"},
	} {
		same(t, r, "/* pgproxy: target=replica */ "+v.sql, v.want)
	}
	if n := h.Server.Stats().Rerun.Refused; n != before {
		t.Errorf("%d statements have been on the standby", n-before)
	}
}

// TestStandbyErrors: errors that are the statement's own reach the client, and a
// cancel ends what it is meant for.
func TestStandbyErrors(t *testing.T) {
	c := realCluster(t)
	h := twoServers(t, c, "")
	r := h.Client(t)
	for _, v := range []struct{ sql, want string }{
		{"SELECT 1/(random() * 0)::int", "T E(22012) Z(I)"},
		{"SELECT * FROM refused_nowhere", "E(42P01) Z(I)"},
		{"SELECT 1 / (3 - i) FROM generate_series(1, 5) i", "T D(0) D(1) E(22012) Z(I)"},
	} {
		same(t, r, v.sql, v.want)
	}
	if st := h.Server.Stats().Rerun; st.Refused+st.Stale+st.Conflict+st.Died != 0 {
		t.Errorf("run again: %+v", st)
	}
}

// TestSerializableRole: a standby that has no serializable mode refuses all that a
// role reads; that says nothing of the statements.
func TestSerializableRole(t *testing.T) {
	c := realCluster(t)
	setup(t, c, "ALTER ROLE "+otherUser+" SET default_transaction_isolation = serializable; CREATE TABLE IF NOT EXISTS refused_table (i int); GRANT ALL ON refused_table TO public")
	defer setup(t, c, "ALTER ROLE "+otherUser+" RESET default_transaction_isolation")
	h := twoServers(t, c, "")
	bob := pgtest.DialRaw(t, h.Addr)
	bob.Login(otherUser, otherSecret, "database", "app")
	const sql = "SELECT count(*) FROM refused_table WHERE i = 77"
	same(t, bob, sql, oneRow("0"))
	if st := h.Server.Stats(); st.Healed != 0 {
		t.Errorf("%d shapes are taken for refused", st.Healed)
	}
	r := h.Client(t)
	same(t, r, sql, oneRow("0"))
	if got := value(r, "SHOW pgproxy.route"); !strings.HasPrefix(got, "replica") {
		t.Errorf("another role's went to %s", got)
	}
}
