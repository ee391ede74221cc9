package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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

// spreakerFamilies is everything that prometheus-pgbouncer-exporter of the Python
// Package Index makes of it. That does not know a name of 1.25 for the reserve pool.
var spreakerFamilies = strings.Fields(`
	up config_max_client_conn config_max_user_connections
	databases_database_pool_size databases_database_current_connections databases_database_max_connections
	stats_transactions_total stats_queries_total stats_transactions_duration_microseconds_total stats_waiting_duration_microseconds_total
	stats_queries_duration_microseconds_total stats_received_bytes_total stats_sent_bytes_total
	pools_client_active_connections pools_client_waiting_connections pools_server_active_connections pools_server_idle_connections
	pools_server_used_connections pools_server_testing_connections pools_server_login_connections pools_client_maxwait_seconds
`)

// TestExporter scrapes the console with exporters that are made for PgBouncer, as
// they come: of prometheus-community, and Spreaker's. "make exporter" installs them
// and runs this.
func TestExporter(t *testing.T) {
	t.Run("prometheus-community", func(t *testing.T) {
		scrape(t, "PGBOUNCER_EXPORTER", exporterFamilies, func(addr, dsn string) []string {
			return []string{"--pgBouncer.connectionString=" + dsn, "--web.listen-address=" + addr}
		})
	})
	t.Run("spreaker", func(t *testing.T) {
		scrape(t, "PGBOUNCER_EXPORTER_PYTHON", spreakerFamilies, func(addr, dsn string) []string {
			host, port, _ := strings.Cut(addr, ":")
			file := filepath.Join(t.TempDir(), "exporter.yml")
			put(t, file, fmt.Sprintf("exporter_host: %s\nexporter_port: %s\npgbouncers:\n  - dsn: %s\n", host, port, dsn))
			return []string{"--config", file}
		})
	})
}

// scrape runs the exporter that a variable names, and compares the names of its
// metrics with families.
func scrape(t *testing.T, variable string, families []string, args func(addr, dsn string) []string) {
	program := os.Getenv(variable)
	if program == "" {
		// Installing it takes long, and the network.
		t.Skipf("%s does not name the program: make exporter", variable)
	}
	a := startApp(t, appCluster(t), "", "")
	conn, err := pgx.Connect(t.Context(), a.dsn(appUser, "app"))
	if err != nil {
		t.Fatal(err)
	}
	one(t, conn, "SELECT 'x'")
	t.Cleanup(func() { _ = conn.Close(context.Background()) })

	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	cmd := exec.Command(program, args(addr, a.dsn(statsUser, "pgbouncer"))...)
	logs := &watched{}
	cmd.Stdout, cmd.Stderr = logs, logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var text string
	eventually(t, 60*time.Second, "a scrape", func() bool {
		r, err := http.Get("http://" + addr + "/metrics")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		text = string(b)
		return err == nil && r.StatusCode == http.StatusOK
	})
	if !regexp.MustCompile(`(?m)^pgbouncer_up 1(\.0)?$`).MatchString(text) {
		t.Errorf("pgbouncer_up is not 1:\n%s", logs)
	}
	for _, name := range families {
		if !regexp.MustCompile(`(?m)^pgbouncer_` + name + `(\{.*\})? \S+$`).MatchString(text) {
			t.Errorf("no pgbouncer_%s", name)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^pgbouncer_(\w+)`).FindAllStringSubmatch(text, -1) {
		if !slices.Contains(families, m[1]) && !strings.HasPrefix(m[1], "exporter_") {
			t.Errorf("pgbouncer_%s is not in the list of this test", m[1])
		}
	}
	if said := strings.ToLower(logs.String()); strings.Contains(said, "level=error") || strings.Contains(said, `"levelname": "error"`) {
		t.Errorf("the exporter complains:\n%s", logs)
	}
}
