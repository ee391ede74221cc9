package admin

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgproxy/wire"
)

// readColumns reads a RowDescription: names, and "name type".
func readColumns(body []byte) (names, cols []string) {
	types := map[uint32]string{wire.OIDText: "text", wire.OIDInt4: "int4", wire.OIDInt8: "int8", wire.OIDNumeric: "numeric", typeBytea: "bytea"}
	n := int(binary.BigEndian.Uint16(body))
	body = body[2:]
	for range n {
		name, rest, _ := wire.String(body)
		names = append(names, string(name))
		cols = append(cols, fmt.Sprintf("%s %s", name, types[binary.BigEndian.Uint32(rest[6:])]))
		body = rest[18:]
	}
	return names, cols
}

// The tables of PgBouncer 1.25.2: types (s text, i int4, q int8, N numeric) and
// names in the order of the wire.
var pgbouncerTables = map[string]string{
	"VERSION":    "s version",
	"CONFIG":     "ssss key value default changeable",
	"STATE":      "ss key value",
	"LISTS":      "si list items",
	"TOTALS":     "sN name value",
	"MEM":        "siiii name size used free memtotal",
	"STATEMENTS": "sN name value",
	"PEERS":      "isii peer_id host port pool_size",
	"PEER_POOLS": "iiiii peer_id cl_active_cancel_req cl_waiting_cancel_req " +
		"sv_active_cancel sv_login",
	"FDS": "issssiqisssssbb fd task user database addr port cancel link client_encoding std_strings datestyle timezone password " +
		"scram_client_key scram_server_key",
	"DNS_HOSTS": "sqs hostname ttl addrs",
	"DNS_ZONES": "sqi zonename serial count",
	"POOLS": "ssiiiiiiiiiiiiiss database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active " +
		"sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode load_balance_hosts",
	"STATS": "sNNNNNNNNNNNNNNNNNNNNNN database total_server_assignment_count total_xact_count total_query_count total_received " +
		"total_sent total_xact_time total_query_time total_wait_time total_client_parse_count total_server_parse_count " +
		"total_bind_count avg_server_assignment_count avg_xact_count avg_query_count avg_recv avg_sent avg_xact_time " +
		"avg_query_time avg_wait_time avg_client_parse_count avg_server_parse_count avg_bind_count",
	"STATS_TOTALS": "sNNNNNNNNNNN database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time " +
		"query_time wait_time client_parse_count server_parse_count bind_count",
	"STATS_AVERAGES": "sNNNNNNNNNNN database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time " +
		"query_time wait_time avg_client_parse_count avg_server_parse_count avg_bind_count",
	"CLIENTS": clientTable, "SERVERS": socketTable,
	"SOCKETS": socketDebugTable, "ACTIVE_SOCKETS": socketDebugTable,
	"DATABASES": "ssissiiiissiiiiii name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime " +
		"pool_mode load_balance_hosts max_connections current_connections max_client_connections current_client_connections " +
		"paused disabled",
	"USERS": "ssssiiii name pool_size reserve_pool_size pool_mode max_user_connections current_connections " +
		"max_user_client_connections current_client_connections",
}

const (
	socketNamesWanted = " type user database replication state addr port local_addr local_port connect_time request_time wait wait_us " +
		"close_needed ptr link remote_pid tls application_name prepared_statements id"
	socketTable      = "ssssssisissiiississii" + socketNamesWanted
	clientTable      = "ssssssisissiiississiisss" + socketNamesWanted + " pin_reason pin_since pin_statement" // the last three are ours
	socketDebugTable = "ssssssisissiiississiiiiiiiii" + socketNamesWanted +
		" recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail"
)

func TestColumns(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	words := map[byte]string{'s': "text", 'i': "int4", 'q': "int8", 'N': "numeric", 'b': "bytea"}
	for name, want := range pgbouncerTables {
		t.Run(name, func(t *testing.T) {
			types, names, _ := strings.Cut(want, " ")
			var cols []string
			for i, n := range strings.Fields(names) {
				cols = append(cols, n+" "+words[types[i]])
			}
			if len(cols) != len(types) {
				t.Fatalf("%d names and %d types", len(cols), len(types))
			}
			got, _ := table(t, c, "show "+strings.ToLower(name)+";")
			if !slices.Equal(got, cols) {
				t.Errorf("\n got %q\nwant %q", got, cols)
			}
		})
	}
	for name := range shows {
		if _, known := pgbouncerTables[strings.ToUpper(name)]; known || ignored(name) {
			continue
		}
		if !slices.Contains([]string{"help", "servers_health", "hosts", "pins", "audit", "listeners", "pools_servers", "routes", "shadow", "shapes", "catalogs", "topology", "events"}, name) {
			t.Errorf("SHOW %s has no columns in this test", name)
		}
	}
	_, pools := table(t, c, "SHOW POOLS")
	if where(pools, "user", "pgbouncer")["cl_active"] != "1" {
		t.Errorf("pool of the console: %v", pools)
	}
}

func TestRows(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	app := r.login(clientUser, "app", "application_name", "shop")
	if got := app.Query("select 1"); got != "T D(select 1) C(SELECT 1) Z(I)" {
		t.Fatal(got)
	}
	busy := r.login(clientUser, "app")
	busy.Send([]byte("Q\x00\x00\x00\x10select hold\x00"))
	await(t, c, "SHOW SERVERS", func(rows []map[string]string) bool { return where(rows, "state", "active") != nil })

	_, rows := table(t, c, "SHOW DATABASES")
	if len(rows) != 3 {
		t.Fatalf("databases: %v", rows)
	}
	two := where(rows, "name", "two")
	for k, v := range map[string]string{
		"host": fmt.Sprintf("127.0.0.1:%d,10.0.0.2:5432", r.Fake.Port()), "database": "two", "force_user": "NULL", "pool_mode": "session",
		"load_balance_hosts": "least-conn", "current_connections": "0", "paused": "0", "disabled": "0", "server_lifetime": "3600",
	} {
		if two[k] != v {
			t.Errorf("database two: %s is %q, want %q", k, two[k], v)
		}
	}
	one := where(rows, "name", "app")
	for k, v := range map[string]string{
		"host": "127.0.0.1", "port": fmt.Sprint(r.Fake.Port()), "database": "app_production", "force_user": "app_rw",
		"pool_size": "5", "max_connections": "40", "load_balance_hosts": "NULL", "current_client_connections": "2",
	} {
		if one[k] != v {
			t.Errorf("database app: %s is %q, want %q", k, one[k], v)
		}
	}
	if own := where(rows, "name", "pgbouncer"); own["host"] != "NULL" || own["pool_mode"] != "statement" || own["force_user"] != "pgbouncer" {
		t.Errorf("database pgbouncer: %v", own)
	}

	// A client may see its answer a moment before its connection has come back.
	rows = await(t, c, "SHOW POOLS", func(rows []map[string]string) bool { return len(rows) > 0 && rows[0]["sv_active"] == "1" })
	if len(rows) != 2 {
		t.Fatalf("pools: %v", rows)
	}
	p := rows[0]
	for k, v := range map[string]string{
		"database": "app", "user": "app_rw", "cl_active": "2", "cl_waiting": "0", "sv_active": "1", "maxwait": "0", "pool_mode": "transaction",
	} {
		if p[k] != v {
			t.Errorf("pool: %s is %q, want %q", k, p[k], v)
		}
	}

	_, rows = table(t, c, "SHOW POOLS_SERVERS")
	if len(rows) != 1 || rows[0]["role"] != "primary" || rows[0]["port"] != fmt.Sprint(r.Fake.Port()) || rows[0]["cl_active"] != "1" {
		t.Errorf("pools by server: %v", rows)
	}

	_, clients := table(t, c, "SHOW CLIENTS")
	_, servers := table(t, c, "SHOW SERVERS")
	if len(clients) != 3 {
		t.Fatalf("clients: %v", clients)
	}
	if x := where(clients, "application_name", "shop"); x["user"] != clientUser || x["state"] != "idle" || x["link"] != "" || x["type"] != "C" {
		t.Errorf("idle client: %v", x)
	}
	if x := where(clients, "database", "pgbouncer"); x["user"] != adminUser || x["state"] != "active" {
		t.Errorf("console client: %v", x)
	}
	active, server := where(clients, "database", "app"), where(servers, "state", "active")
	for _, x := range clients {
		if x["link"] != "" {
			active = x
		}
	}
	if active["link"] == "" || active["link"] != server["ptr"] || server["link"] != active["ptr"] || server["type"] != "S" {
		t.Errorf("client and server are not linked: %v, %v", active, server)
	}
	if server["user"] != "app_rw" || server["addr"] != "127.0.0.1" || server["remote_pid"] == "0" {
		t.Errorf("server: %v", server)
	}

	_, rows = table(t, c, "SHOW ACTIVE_SOCKETS")
	if where(rows, "state", "cl_active") == nil || where(rows, "state", "sv_active") == nil || where(rows, "state", "cl_idle") != nil {
		t.Errorf("active sockets: %v", rows)
	}
	_, rows = table(t, c, "SHOW USERS")
	if u := where(rows, "name", "reporting"); u["pool_size"] != "7" || u["pool_mode"] != "statement" || u["max_user_connections"] != "9" {
		t.Errorf("users: %v", rows)
	}
	if u := where(rows, "name", clientUser); u["pool_size"] != "" || u["pool_mode"] != "NULL" || u["current_client_connections"] != "2" {
		t.Errorf("user: %v", u)
	}
	_, rows = table(t, c, "SHOW LISTS")
	for k, v := range map[string]string{"databases": "3", "pools": "2", "used_clients": "3", "login_clients": "0", "free_servers": "0"} {
		if got := where(rows, "list", k)["items"]; got != v {
			t.Errorf("list %s: %s, want %s", k, got, v)
		}
	}
	_, rows = table(t, c, "SHOW CONFIG")
	if k := where(rows, "key", "max_client_conn"); k["value"] != "100" || k["default"] != "10000" || k["changeable"] != "yes" {
		t.Errorf("max_client_conn: %v", k)
	}
	if k := where(rows, "key", "listen_port"); k["changeable"] != "no" {
		t.Errorf("listen_port: %v", k)
	}
	_, rows = table(t, c, "SHOW SERVERS_HEALTH")
	if len(rows) != 1 || rows[0]["role"] != "primary" || rows[0]["state"] != "up" || rows[0]["lsn"] != "1/FF" {
		t.Errorf("health: %v", rows)
	}
	_, rows = table(t, c, "SHOW VERSION")
	if rows[0]["version"] != "PgBouncer 1.25.2 (pgproxy 0.test)" {
		t.Errorf("version: %v", rows)
	}
	_, rows = table(t, c, "SHOW STATE")
	if where(rows, "key", "active")["value"] != "yes" || where(rows, "key", "paused")["value"] != "no" {
		t.Errorf("state: %v", rows)
	}
	close(r.hold)
	busy.ReadUntilReady()
}

// TestPins: a client with a lock keeps its connection, and SHOW PINS says why.
func TestPins(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	app := r.login(clientUser, "app", "application_name", "keeper")
	app.Query("SELECT pg_advisory_lock(1)")
	rows := await(t, c, "SHOW PINS", func(rows []map[string]string) bool { return len(rows) == 1 })
	p := rows[0]
	if p["database"] != "app" || p["user"] != "app_rw" || p["reason"] == "" || p["application_name"] != "keeper" || p["client_id"] == "NULL" {
		t.Errorf("pin: %v", p)
	}
}

// TestHosts: SHOW HOSTS counts the connections to a server over all pools.
func TestHosts(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	app := r.login(clientUser, "app")
	app.Query("BEGIN")
	rows := await(t, c, "SHOW HOSTS", func(rows []map[string]string) bool { return len(rows) == 1 && rows[0]["current_connections"] == "1" })
	if h := rows[0]; h["port"] == "" || h["max_connections"] != "0" || h["waiting_pools"] != "0" {
		t.Errorf("host: %v", h)
	}
}

// TestListeners: SHOW LISTENERS has a row for each server connection that listens.
func TestListeners(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	if rows := await(t, c, "SHOW LISTENERS", func([]map[string]string) bool { return true }); len(rows) != 0 {
		t.Errorf("before the first LISTEN: %v", rows)
	}
	app := r.login(clientUser, "app")
	app.Query("LISTEN news")
	rows := await(t, c, "SHOW LISTENERS", func(rows []map[string]string) bool { return len(rows) == 1 })
	l := rows[0]
	if l["database"] != "app" || l["user"] != "app_rw" || l["state"] != "listening" || l["channels"] != "1" || l["clients"] != "1" {
		t.Errorf("listener: %v", l)
	}
	if rows := await(t, c, "SHOW PINS", func([]map[string]string) bool { return true }); len(rows) != 0 {
		t.Errorf("pins: %v", rows)
	}
}
