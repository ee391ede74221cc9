package config

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// iniKey is one key of section [pgbouncer], and what becomes of it.
type iniKey struct {
	name string
	form iniForm
	def  string // PgBouncer's default, as it would be written
	to   string // the key of [proxy] that means the same; "" is none

	// Of a key without one: what the warning says. For def and the values of
	// harmless there is none.
	why      string
	harmless []string
}

// iniForm is how PgBouncer reads a value.
type iniForm struct {
	read func(value string) (any, error) // the value for [proxy]
}

// take is a key that means the same here; its name is the same unless to is
// given.
func take(form iniForm, name, def string, to ...string) iniKey {
	return iniKey{name: name, form: form, def: def, to: append(to, name)[0]}
}

// idle is a key that cannot mean anything here.
func idle(form iniForm, name, def, why string, harmless ...string) iniKey {
	return iniKey{name: name, form: form, def: def, why: why, harmless: harmless}
}

// Why keys mean nothing here.
const (
	whyDNS      = "no effect: names are looked up at each connect"
	whyBuffers  = "no effect: buffers are borrowed as they are needed"
	whyAuto     = "no effect: pools that nobody uses go by themselves"
	whyCiphers  = "no effect: Go's own choice of cipher suites counts, as OpenSSL's words mean nothing to it"
	whyTLS13    = "no effect: the cipher suites of TLS 1.3 are not to be chosen"
	whyCurve    = "no effect: the curve is negotiated"
	whyPlatform = "no effect on this system"
)

// iniKeys are all keys of PgBouncer 1.25, and the two that are newer: the one
// table of what is done with them.
var iniKeys = []iniKey{
	// Listening and the process.
	take(iniNames, "listen_addr", ""),
	take(iniInt, "listen_port", "6432"),
	take(iniText, "unix_socket_dir", "/tmp"),
	take(iniMode, "unix_socket_mode", "0777"),
	take(iniText, "unix_socket_group", ""),
	take(iniBool, "so_reuseport", "0"),
	take(iniFile, "pidfile", ""),
	take(iniText, "user", ""),
	take(iniInt, "peer_id", "0"),
	idle(iniInt, "listen_backlog", "128", "no effect: the system's net.core.somaxconn counts"),
	idle(iniText, "job_name", "pgbouncer", whyPlatform),
	idle(iniText, "service_name", "pgbouncer", whyPlatform),
	idle(iniText, "conffile", "", "no effect: RELOAD reads the file that the proxy was started with"),
	idle(iniText, "resolv_conf", "", "no effect: the system's resolver is asked"),
	idle(iniTime, "dns_max_ttl", "15", whyDNS),
	idle(iniTime, "dns_nxdomain_ttl", "15", whyDNS),
	idle(iniTime, "dns_zone_check_period", "0", whyDNS),

	// Pools.
	take(iniWord(poolModes...), "pool_mode", "session"),
	take(iniInt, "max_client_conn", "100"),
	take(iniInt, "default_pool_size", "20"),
	take(iniInt, "min_pool_size", "0"),
	take(iniInt, "reserve_pool_size", "0"),
	take(iniTime, "reserve_pool_timeout", "5"),
	take(iniInt, "max_db_connections", "0"),
	take(iniInt, "max_user_connections", "0"),
	take(iniInt, "max_db_client_connections", "0"),
	take(iniInt, "max_user_client_connections", "0"),
	take(iniBool, "server_round_robin", "0"),
	take(iniInt, "max_prepared_statements", "200"),
	take(iniSeconds, "stats_period", "60"),
	idle(iniTime, "autodb_idle_timeout", "3600", whyAuto),
	idle(iniTime, "pool_idle_timeout", "0", whyAuto),

	// Sessions.
	take(iniNames, "ignore_startup_parameters", ""),
	take(iniText, "server_reset_query", "DISCARD ALL"),
	take(iniBool, "application_name_add_host", "0"),
	idle(iniText, "track_extra_parameters", "IntervalStyle", "no effect: every SET follows its client"),
	idle(iniBool, "server_reset_query_always", "0", "no effect: what a transaction leaves behind is known, and undone where it must be"),
	idle(iniBool, "server_fast_close", "0", "no effect: a connection that is to be replaced goes when its client is done with it"),
	take(iniBool, "disable_pqexec", "0"),

	// Logins.
	take(iniWord("any", "trust", "plain", "md5", "cert", "hba", "ldap", "pam", "scram-sha-256"), "auth_type", "md5"),
	take(iniFile, "auth_file", ""),
	take(iniNames, "admin_users", ""),
	take(iniNames, "stats_users", ""),
	take(iniTime, "client_login_timeout", "60"),
	take(iniFile, "auth_hba_file", ""),
	take(iniFile, "auth_ident_file", ""),
	take(iniText, "auth_user", ""),
	take(iniText, "auth_query", defaultAuthQuery),
	take(iniText, "auth_dbname", ""),
	take(iniText, "auth_ldap_options", ""),
	idle(iniInt, "scram_iterations", "4096", "no effect: the secrets of auth_file have a number of their own, and others use 4096"),

	// Log.
	take(iniFile, "logfile", ""),
	take(iniBool, "syslog", "0"),
	take(iniText, "syslog_ident", "pgbouncer"),
	take(iniText, "syslog_facility", "daemon"),
	take(iniBool, "log_connections", "1"),
	take(iniBool, "log_disconnections", "1"),
	take(iniBool, "log_pooler_errors", "1"),
	take(iniBool, "log_stats", "1"),
	take(iniVerbose, "verbose", "0", "log_level"),

	// Server connections and timeouts.
	take(iniCheckDelay, "server_check_delay", "30"),
	take(iniCheckQuery, "server_check_query", emptyQuery),
	take(iniLifetime, "server_lifetime", "3600"),
	take(iniTime, "server_idle_timeout", "600"),
	take(iniTime, "server_connect_timeout", "15"),
	take(iniTime, "server_login_retry", "15"),
	take(iniTime, "query_wait_timeout", "120"),
	take(iniSeconds, "query_wait_notify", "5"),
	take(iniCancelWait, "cancel_wait_timeout", "10"),
	take(iniTime, "query_timeout", "0"),
	take(iniTime, "idle_transaction_timeout", "0"),
	take(iniTime, "transaction_timeout", "0"),
	take(iniTime, "client_idle_timeout", "0"),
	take(iniTime, "suspend_timeout", "10"),
	idle(iniText, "login_notify_message", "", "no effect: there is no notice at login"),

	// TLS.
	take(iniWord(tlsModes...), "client_tls_sslmode", "disable"),
	take(iniFile, "client_tls_key_file", ""),
	take(iniFile, "client_tls_cert_file", ""),
	take(iniFile, "client_tls_ca_file", ""),
	take(iniProtocols, "client_tls_protocols", "secure"),
	idle(iniText, "client_tls_ciphers", "default", whyCiphers, tlsDefaultCiphers...),
	idle(iniText, "client_tls13_ciphers", "", whyTLS13),
	idle(iniText, "client_tls_ecdhcurve", "auto", whyCurve),
	idle(iniText, "client_tls_dheparams", "auto", "no effect: there is no key exchange by DHE"),
	take(iniWord(tlsModes...), "server_tls_sslmode", "prefer"),
	take(iniFile, "server_tls_key_file", ""),
	take(iniFile, "server_tls_cert_file", ""),
	take(iniFile, "server_tls_ca_file", ""),
	take(iniProtocols, "server_tls_protocols", "secure"),
	idle(iniText, "server_tls_ciphers", "default", whyCiphers, tlsDefaultCiphers...),
	idle(iniText, "server_tls13_ciphers", "", whyTLS13),

	// Network.
	take(iniInt, "max_packet_size", "2147483647"),
	take(iniBool, "tcp_keepalive", "1"),
	take(iniInt, "tcp_keepcnt", "0"),
	take(iniSeconds, "tcp_keepidle", "0"),
	take(iniSeconds, "tcp_keepintvl", "0"),
	take(iniMillis, "tcp_user_timeout", "0"),
	idle(iniInt, "pkt_buf", "4096", whyBuffers),
	idle(iniInt, "sbuf_loopcnt", "5", whyBuffers),
	idle(iniInt, "tcp_defer_accept", "1", "no effect: a client costs little before it has sent something"),
	idle(iniInt, "tcp_socket_buffer", "0", "no effect: the system sizes the buffers of sockets"),
}

// iniImplied are the values of [proxy] for which a pgbouncer.ini has no key, and
// those of keys with a better default here: they hold if the file says nothing.
var iniImplied = map[string]any{
	"http_listen":        "",
	"shutdown_timeout":   "0s", // PgBouncer waits for its clients as long as it takes
	"server_login_retry": "1s", // PgBouncer fails new clients for 15 s after one failed login
}

const defaultAuthQuery = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin"

// The forms.
var (
	iniInt     = iniForm{func(s string) (any, error) { return cInt(s) }}
	iniBool    = iniForm{func(s string) (any, error) { n, err := cInt(s); return n != 0, err }}
	iniText    = iniForm{func(s string) (any, error) { return s, nil }}
	iniFile    = iniForm{func(s string) (any, error) { return absolute(s) }}
	iniNames   = iniForm{func(s string) (any, error) { return once(s), nil }}
	iniTime    = iniForm{func(s string) (any, error) { return showTime(cSeconds(s)) }}
	iniSeconds = iniForm{func(s string) (any, error) { return showTime(cUnits(s, time.Second)) }}
	iniMillis  = iniForm{func(s string) (any, error) { return showTime(cUnits(s, time.Millisecond)) }}

	// PgBouncer separates versions by commas, colons or spaces.
	iniProtocols = iniForm{func(s string) (any, error) {
		return once(strings.Join(strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(":, ", r) }), ",")), nil
	}}

	iniMode = iniForm{func(s string) (any, error) {
		n, err := cInt(s)
		if err != nil {
			return nil, err
		}
		return fmt.Sprintf("%#o", n), nil
	}}
	iniVerbose = iniForm{func(s string) (any, error) {
		n, err := cInt(s)
		if err != nil || n <= 0 {
			return "info", err
		}
		return "debug", nil
	}}
	// server_check_delay = 0 checks always, which is never here.
	iniCheckDelay = iniForm{func(s string) (any, error) {
		d, err := cSeconds(s)
		return showTime(max(d, 1), err)
	}}
	// server_check_query without a text checks never.
	iniCheckQuery = iniForm{func(s string) (any, error) {
		if s == "" {
			return CheckQueryOff, nil
		}
		return s, nil
	}}
	// server_lifetime = 0 uses a connection once; here it is for ever. A second is
	// what comes next to it.
	iniLifetime = iniForm{func(s string) (any, error) {
		d, err := cSeconds(s)
		if d == 0 {
			d = time.Second
		}
		return showTime(d, err)
	}}
	// cancel_wait_timeout = 0 waits for ever; here there is always an end.
	iniCancelWait = iniForm{func(s string) (any, error) {
		d, err := cSeconds(s)
		if d == 0 {
			d = day
		}
		return showTime(d, err)
	}}
)

func iniWord(words ...string) iniForm {
	return iniForm{func(s string) (any, error) { return s, oneOf(words...)(s) }}
}

// cInt reads an integer as C's strtol does with base 0.
func cInt(s string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimLeft(s, " \t\n\v\f\r"), 0, 64)
	if err != nil || strings.ContainsAny(s, "_bBoO") && !strings.HasPrefix(strings.ToLower(s), "0x") {
		return 0, fmt.Errorf("%s is no integer", quote(s))
	}
	return n, nil
}

// cSeconds reads a number of seconds, which may have a fraction.
func cSeconds(s string) (time.Duration, error) {
	f, err := strconv.ParseFloat(strings.TrimLeft(s, " \t\n\v\f\r"), 64)
	switch {
	case err != nil || strings.Contains(s, "_") || math.IsNaN(f):
		return 0, fmt.Errorf("%s is no number of seconds: want one without a unit, as 10 or 0.5", quote(s))
	case f < 0:
		return 0, errors.New("want a number of seconds that is not negative")
	case f > year.Seconds():
		return year, nil // as good as never
	}
	return time.Duration(f*1e6) * time.Microsecond, nil
}

func cUnits(s string, unit time.Duration) (time.Duration, error) {
	n, err := cInt(s)
	switch {
	case err != nil:
		return 0, err
	case n < 0:
		return 0, fmt.Errorf("%s is negative", quote(s))
	}
	return time.Duration(min(n, int64(day/unit))) * unit, nil
}

func showTime(d time.Duration, err error) (any, error) { return showDuration(d), err }

// once is a list with commas in which nothing stands twice.
func once(s string) string {
	var out []string
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" && !slices.Contains(out, item) {
			out = append(out, item)
		}
	}
	return strings.Join(out, ",")
}
