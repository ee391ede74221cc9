package config

import (
	"slices"
	"strings"
	"testing"
)

// bouncerKeys are the keys of section [pgbouncer] in PgBouncer 1.25, without the
// one that only Windows has.
var bouncerKeys = strings.Fields(`
	admin_users application_name_add_host auth_dbname auth_file auth_hba_file auth_ident_file auth_ldap_options auth_query
	auth_type auth_user autodb_idle_timeout cancel_wait_timeout client_idle_timeout client_login_timeout
	client_tls13_ciphers client_tls_ca_file client_tls_cert_file client_tls_ciphers client_tls_dheparams
	client_tls_ecdhcurve client_tls_key_file client_tls_protocols client_tls_sslmode conffile default_pool_size
	disable_pqexec dns_max_ttl dns_nxdomain_ttl dns_zone_check_period idle_transaction_timeout
	ignore_startup_parameters job_name listen_addr listen_backlog listen_port log_connections log_disconnections
	log_pooler_errors log_stats logfile max_client_conn max_db_client_connections max_db_connections max_packet_size
	max_prepared_statements max_user_client_connections max_user_connections min_pool_size peer_id pidfile pkt_buf
	pool_mode query_timeout query_wait_notify query_wait_timeout reserve_pool_size reserve_pool_timeout resolv_conf
	sbuf_loopcnt scram_iterations server_check_delay server_check_query server_connect_timeout server_fast_close
	server_idle_timeout server_lifetime server_login_retry server_reset_query server_reset_query_always
	server_round_robin server_tls13_ciphers server_tls_ca_file server_tls_cert_file server_tls_ciphers
	server_tls_key_file server_tls_protocols server_tls_sslmode so_reuseport stats_period stats_users suspend_timeout
	syslog syslog_facility syslog_ident tcp_defer_accept tcp_keepalive tcp_keepcnt tcp_keepidle tcp_keepintvl
	tcp_socket_buffer tcp_user_timeout track_extra_parameters transaction_timeout unix_socket_dir unix_socket_group
	unix_socket_mode user verbose
`)

// TestINIKeys: every key of PgBouncer is in the table, once, and a file that has
// all of them with their defaults is as good as one without, and has no warning.
func TestINIKeys(t *testing.T) {
	if n := len(bouncerKeys); n != 98 {
		t.Errorf("%d keys of PgBouncer, want 98", n)
	}
	var known []string
	file := "[databases]\na = host=h\n[pgbouncer]\n"
	for _, k := range iniKeys {
		if slices.Contains(known, k.name) {
			t.Errorf("%s stands twice in the table", k.name)
		}
		known = append(known, k.name)
		if k.to != "" && !has(proxyKeys, k.to) {
			t.Errorf("%s becomes %s, which is no key", k.name, k.to)
		}
		if (k.to == "") == (k.why == "") {
			t.Errorf("%s: a key is either taken or there is a reason", k.name)
		}
		if k.name != "server_login_retry" { // which has another default here
			file += k.name + " = " + k.def + "\n"
		}
	}
	for _, name := range bouncerKeys {
		if !slices.Contains(known, name) {
			t.Errorf("%s is not in the table", name)
		}
	}
	full, err := Parse("full.ini", []byte(file+"auth_file = /u\n"))
	if err != nil {
		t.Fatal(err)
	}
	bare, err := Parse("bare.ini", []byte("[databases]\na = host=h\n[pgbouncer]\nauth_file = /u\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(full.Warnings) > 0 {
		t.Errorf("warnings: %q", full.Warnings)
	}
	want := flatten(bare)
	for k, v := range flatten(full) {
		if want[k] != v {
			t.Errorf("%s is %q with all keys written, %q without", k, v, want[k])
		}
	}
}

// TestIdle: what the file says of keys that mean nothing is not forgotten.
func TestIdle(t *testing.T) {
	cfg, err := Parse("a.ini", []byte("[databases]\na = host=h\n[pgbouncer]\nauth_file = /u\npkt_buf = 8192\n"))
	if err != nil {
		t.Fatal(err)
	}
	keys, values := cfg.Idle()
	if values["pkt_buf"] != "8192" || values["sbuf_loopcnt"] != "5" || len(keys) != len(values) {
		t.Errorf("%d keys, %v", len(keys), values)
	}
	for _, k := range keys {
		if has(proxyKeys, k.Name) {
			t.Errorf("%s is a key of pgproxy too", k.Name)
		}
	}
	if keys, _ := (&Config{}).Idle(); keys != nil {
		t.Errorf("a file in TOML has %v", keys)
	}
}
