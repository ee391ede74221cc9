package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// exporterFamilies is everything that pgbouncer_exporter makes of a PgBouncer
// 1.25, without the prefix pgbouncer_.
var exporterFamilies = strings.Fields(`
	up version_info client_connections config_max_client_connections config_max_user_connections
	databases users pools free_clients used_clients login_clients free_servers used_servers
	cached_dns_names cached_dns_zones in_flight_dns_queries
	databases_pool_size databases_reserve_pool databases_max_connections databases_current_connections databases_paused
	databases_disabled
	stats_totals_queries_pooled_total stats_totals_queries_duration_seconds_total stats_totals_received_bytes_total
	stats_totals_sent_bytes_total stats_totals_client_wait_seconds_total stats_totals_sql_transactions_pooled_total
	stats_totals_server_in_transaction_seconds_total stats_totals_client_parses_total stats_totals_server_parses_total
	stats_totals_binds_total stats_totals_server_assignments_total
	pools_client_active_connections pools_client_active_cancel_connections pools_client_waiting_connections
	pools_client_waiting_cancel_connections pools_server_active_connections pools_server_active_cancel_connections
	pools_server_being_canceled_connections pools_server_idle_connections pools_server_used_connections
	pools_server_testing_connections pools_server_login_connections pools_client_maxwait_seconds
`)

// TestExporter scrapes the console with pgbouncer_exporter, as it comes. "make
// exporter" builds that and runs this.
func TestExporter(t *testing.T) {
	program := os.Getenv("PGBOUNCER_EXPORTER")
	if program == "" {
		// Building it takes long, and the network.
		t.Skip("PGBOUNCER_EXPORTER does not name the program: make exporter")
	}
	a := startApp(t, appCluster(t), "", "")
	conn, err := pgx.Connect(t.Context(), a.dsn(appUser, "app"))
	if err != nil {
		t.Fatal(err)
	}
	one(t, conn, "SELECT 'x'")
	t.Cleanup(func() { _ = conn.Close(context.Background()) })

	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	cmd := exec.Command(program, "--pgBouncer.connectionString="+a.dsn(statsUser, "pgbouncer"), "--web.listen-address="+addr)
	logs := &watched{}
	cmd.Stdout, cmd.Stderr = logs, logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var text string
	eventually(t, 20*time.Second, "a scrape", func() bool {
		r, err := http.Get("http://" + addr + "/metrics")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		text = string(b)
		return err == nil && r.StatusCode == http.StatusOK
	})
	if !strings.Contains(text, "\npgbouncer_up 1\n") {
		t.Errorf("pgbouncer_up is not 1:\n%s", logs)
	}
	for _, name := range exporterFamilies {
		if !regexp.MustCompile(`(?m)^pgbouncer_` + name + `(\{.*\})? \S+$`).MatchString(text) {
			t.Errorf("no pgbouncer_%s", name)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE pgbouncer_(\w+) `).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(" "+strings.Join(exporterFamilies, " ")+" ", " "+m[1]+" ") && !strings.HasPrefix(m[1], "exporter_") {
			t.Errorf("pgbouncer_%s is not in the list of this test", m[1])
		}
	}
	if strings.Contains(strings.ToLower(logs.String()), "level=error") {
		t.Errorf("the exporter complains:\n%s", logs)
	}
}
