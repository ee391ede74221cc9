package admin

import (
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
)

func TestAverage(t *testing.T) {
	old := counts{10, 100, 1000, 5000, 6000, 1_000_000, 2_000_000, 30_000, 1, 2, 3}
	now := counts{30, 150, 1400, 15000, 6000, 1_500_000, 2_400_000, 50_000, 21, 2, 43}
	want := counts{2, 5, 40, 1000, 0, 10_000, 1000, 1000, 2, 0, 4}
	if got := now.average(&old, 10*time.Second); got != want {
		t.Errorf("\n got %v\nwant %v", got, want)
	}
	if got := old.average(&now, 10*time.Second); got != (counts{}) {
		t.Errorf("counts that went down: %v", got)
	}
	if got := now.average(&old, 0); got != (counts{}) {
		t.Errorf("no time: %v", got)
	}
}

func TestStats(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	app := r.login(clientUser, "app")
	for range 10 {
		app.Query("select 5")
	}
	app.Send(pgtest.Extended("select 6"))
	app.ReadUntilReady()
	await(t, c, "SHOW STATS_TOTALS", func(rows []map[string]string) bool { return where(rows, "database", "app")["query_count"] == "11" })
	r.Console.endPeriod(r.Console.sample.at.Add(2 * time.Second))

	_, rows := table(t, c, "SHOW STATS")
	x := where(rows, "database", "app")
	for k, v := range map[string]string{
		"total_xact_count": "11", "total_query_count": "11", "avg_xact_count": "5", "avg_query_count": "5", "total_bind_count": "1",
		"total_client_parse_count": "1",
	} {
		if x[k] != v {
			t.Errorf("%s is %s, want %s", k, x[k], v)
		}
	}
	if x["total_received"] == "0" || x["total_sent"] == "0" || x["avg_recv"] == "0" || x["total_server_assignment_count"] == "0" {
		t.Errorf("stats: %v", x)
	}
	if own := where(rows, "database", "pgbouncer"); own["total_query_count"] == "0" || own["total_sent"] == "0" {
		t.Errorf("the console's: %v", own)
	}
	_, rows = table(t, c, "SHOW STATS_AVERAGES")
	if got := where(rows, "database", "app")["query_count"]; got != "5" {
		t.Errorf("average: %s", got)
	}
	_, rows = table(t, c, "SHOW TOTALS")
	if len(rows) != 22 || rows[0]["name"] != "total_server_assignment_count" || rows[3]["name"] != "total_client_bytes" ||
		rows[10]["name"] != "total_ps_bind_count" || rows[21]["name"] != "avg_ps_bind_count" {
		t.Errorf("totals: %v", rows)
	}
	if log := r.Log.Text(); !strings.Contains(log, "msg=stats xacts_per_s=5 queries_per_s=5") {
		t.Errorf("no line of statistics:\n%s", log)
	}
}

// TestSecrets is S-16: no password shows on the console or in the log.
func TestSecrets(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	app := r.login(clientUser, "app")
	app.Query("select 7")
	var seen strings.Builder
	for sql := range everyStatement() {
		if strings.HasPrefix(sql, "SHOW") {
			c.Send(pgtest.Query(sql))
			for _, m := range c.ReadUntilReady() {
				seen.Write(m.Body)
			}
		}
	}
	for _, sql := range []string{"SET monitor_password = '" + canary + "'", "SET nonsense = '" + canary + "'"} {
		c.Send(pgtest.Query(sql))
		for _, m := range c.ReadUntilReady() {
			seen.Write(m.Body)
		}
	}
	if strings.Contains(seen.String(), canary) {
		t.Error("a secret shows on the console")
	}
	if strings.Contains(r.Log.Text(), canary) {
		t.Errorf("a secret is in the log:\n%s", r.Log.Text())
	}
}
