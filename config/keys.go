package config

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Key describes one key of [proxy].
type Key struct {
	Name       string
	Default    string // as Values shows it
	Changeable bool   // RELOAD applies a change; otherwise a restart is needed
	Secret     bool
	Kind       Kind
}

// Kind is the type of a value, as far as others write it differently.
type Kind uint8

// The kinds.
const (
	KindOther Kind = iota
	KindBool
	KindDuration
)

// Keys lists the keys of [proxy] in alphabetical order.
func Keys() []Key {
	def := defaultProxy()
	keys := make([]Key, 0, len(proxyKeys))
	for _, k := range proxyKeys {
		keys = append(keys, Key{Name: k.name, Default: k.show(&def), Changeable: !k.restart, Secret: k.secret, Kind: k.kind})
	}
	slices.SortFunc(keys, func(a, b Key) int { return strings.Compare(a.Name, b.Name) })
	return keys
}

// Idle lists PgBouncer's keys that mean nothing here, if the configuration was
// read from a pgbouncer.ini, with what that says of them.
func (c *Config) Idle() (keys []Key, values map[string]string) {
	if !c.INI() {
		return nil, nil
	}
	values = make(map[string]string)
	for i := range iniKeys {
		if k := &iniKeys[i]; k.to == "" && !has(proxyKeys, k.name) {
			keys = append(keys, Key{Name: k.name, Default: k.def})
			values[k.name] = k.def
			if v, ok := c.source.idle[k.name]; ok {
				values[k.name] = v
			}
		}
	}
	return keys, values
}

// Values are the values of [proxy] by key, written as in the file, but lists with
// commas. Of a secret only its existence shows.
func (c *Config) Values() map[string]string {
	m := make(map[string]string, len(proxyKeys))
	for _, k := range proxyKeys {
		m[k.name] = k.show(&c.Proxy)
	}
	return m
}

// Longest durations: what is larger is a typing error, not a plan.
const (
	year = 365 * 24 * time.Hour
	day  = 24 * time.Hour
)

func defaultProxy() Proxy {
	return Proxy{
		ListenAddr: []string{"127.0.0.1"}, ListenPort: 6432, HTTPListen: "127.0.0.1:9632",
		ClientTLS: TLS{Protocols: []string{"secure"}, Ciphers: []string{"default"}},
		ServerTLS: TLS{Mode: TLSPrefer, Protocols: []string{"secure"}, Ciphers: []string{"default"}},
		AuthQuery: defaultAuthQuery, AuthQueryTTL: 10 * time.Second,
		AuthFile: "userlist.txt", ClientLoginTimeout: 60 * time.Second, AuthFailurePeriod: 60 * time.Second,
		PoolMode: PoolTransaction, DefaultPoolSize: 20, MaxClientConn: 10000, MaxReplicationConnections: 10, QueryWaitTimeout: 120 * time.Second,
		ServerIdleTimeout: 600 * time.Second, ServerLifetime: 3600 * time.Second, ServerCheckDelay: 30 * time.Second,
		ServerConnectTimeout: 15 * time.Second, ServerLoginRetry: time.Second, ServerResetQuery: "DISCARD ALL",
		MaxPreparedStatements: 200, DeferredBegin: true, SessionAuditRatio: 100, MaxClientPreparedStatements: 10_000, PreparedStatementMemory: 256 << 20,
		ServerCheckInterval: time.Second, LSNInterval: 200 * time.Millisecond, CatalogInterval: time.Minute,
		ServerRamp: 5 * time.Second, DNSMaxTTL: 15 * time.Second,
		CancelWaitTimeout: 10 * time.Second, ShutdownTimeout: 60 * time.Second, DrainRate: 1000, SuspendTimeout: 10 * time.Second,
		UnixSocketMode: 0o777, ReservePoolTimeout: 5 * time.Second, QueryWaitNotify: 5 * time.Second,
		SyslogIdent: "pgproxy", SyslogFacility: "daemon", LogStats: true,
		MaxPacketSize: 1<<31 - 1, MaxQueryParseSize: 1 << 20,
		TCPKeepalive: true, TCPKeepIdle: 30 * time.Second, TCPKeepIntvl: 10 * time.Second, TCPUserTimeout: 30 * time.Second,
		LogConnections: true, LogDisconnections: true, LogPoolerErrors: true, LogLevel: "info", StatsPeriod: 60 * time.Second,
	}
}

// proxyKeys are the keys of [proxy].
var proxyKeys = []key[Proxy]{
	restart(list("listen_addr", func(p *Proxy) *[]string { return &p.ListenAddr }, listenAddr)),
	restart(number("listen_port", func(p *Proxy) *int { return &p.ListenPort }, 0, 65535)),
	restart(text("unix_socket_dir", func(p *Proxy) *string { return &p.UnixSocketDir }, oneLine)),
	restart(enum("unix_socket_mode", func(p *Proxy) *FileMode { return &p.UnixSocketMode })),
	restart(text("unix_socket_group", func(p *Proxy) *string { return &p.UnixSocketGroup }, nameOrNone)),
	restart(boolean("so_reuseport", func(p *Proxy) *bool { return &p.SoReuseport })),
	list("proxy_protocol", func(p *Proxy) *[]string { return &p.ProxyProtocol }, func(s string) error { _, err := network(s); return err }),
	restart(text("http_listen", func(p *Proxy) *string { return &p.HTTPListen }, hostPort)),

	restart(text("pidfile", func(p *Proxy) *string { return &p.PidFile }, oneLine)),
	restart(text("user", func(p *Proxy) *string { return &p.User }, nameOrNone)),
	restart(number("peer_id", func(p *Proxy) *int { return &p.PeerID }, 0, 16383)),

	enum("auth_type", func(p *Proxy) *AuthType { return &p.AuthType }),
	text("auth_file", func(p *Proxy) *string { return &p.AuthFile }, oneLine),
	text("auth_hba_file", func(p *Proxy) *string { return &p.AuthHBAFile }, oneLine),
	text("auth_ident_file", func(p *Proxy) *string { return &p.AuthIdentFile }, oneLine),
	secret("auth_ldap_options", func(p *Proxy) *Secret { return &p.AuthLDAPOptions }),
	text("auth_user", func(p *Proxy) *string { return &p.AuthUser }, nameOrNone),
	text("auth_query", func(p *Proxy) *string { return &p.AuthQuery }, statement),
	text("auth_dbname", func(p *Proxy) *string { return &p.AuthDBName }, nameOrNone),
	duration("auth_query_ttl", func(p *Proxy) *time.Duration { return &p.AuthQueryTTL }, 0, day),
	list("admin_users", func(p *Proxy) *[]string { return &p.AdminUsers }, name),
	list("stats_users", func(p *Proxy) *[]string { return &p.StatsUsers }, name),
	duration("client_login_timeout", func(p *Proxy) *time.Duration { return &p.ClientLoginTimeout }, 0, day),
	number("auth_failure_limit", func(p *Proxy) *int { return &p.AuthFailureLimit }, 0, 1_000_000),
	duration("auth_failure_period", func(p *Proxy) *time.Duration { return &p.AuthFailurePeriod }, time.Second, day),
	list("ignore_startup_parameters", func(p *Proxy) *[]string { return &p.IgnoreStartupParameters }, name),

	enum("client_tls_sslmode", func(p *Proxy) *TLSMode { return &p.ClientTLS.Mode }),
	text("client_tls_cert_file", func(p *Proxy) *string { return &p.ClientTLS.CertFile }, oneLine),
	text("client_tls_key_file", func(p *Proxy) *string { return &p.ClientTLS.KeyFile }, oneLine),
	text("client_tls_ca_file", func(p *Proxy) *string { return &p.ClientTLS.CAFile }, oneLine),
	list("client_tls_protocols", func(p *Proxy) *[]string { return &p.ClientTLS.Protocols }, tlsProtocol),
	list("client_tls_ciphers", func(p *Proxy) *[]string { return &p.ClientTLS.Ciphers }, tlsCipher),

	enum("pool_mode", func(p *Proxy) *PoolMode { return &p.PoolMode }),
	number("default_pool_size", func(p *Proxy) *int { return &p.DefaultPoolSize }, 0, maxConns),
	number("min_pool_size", func(p *Proxy) *int { return &p.MinPoolSize }, 0, maxConns),
	number("reserve_pool_size", func(p *Proxy) *int { return &p.ReservePoolSize }, 0, maxConns),
	duration("reserve_pool_timeout", func(p *Proxy) *time.Duration { return &p.ReservePoolTimeout }, 0, year),
	number("max_replication_connections", func(p *Proxy) *int { return &p.MaxReplicationConnections }, 0, maxConns),
	number("max_client_conn", func(p *Proxy) *int { return &p.MaxClientConn }, 1, maxConns),
	number("max_db_connections", func(p *Proxy) *int { return &p.MaxDBConnections }, 0, maxConns),
	number("max_user_connections", func(p *Proxy) *int { return &p.MaxUserConnections }, 0, maxConns),
	number("max_host_connections", func(p *Proxy) *int { return &p.MaxHostConnections }, 0, maxConns),
	number("max_db_client_connections", func(p *Proxy) *int { return &p.MaxDBClientConnections }, 0, maxConns),
	number("max_user_client_connections", func(p *Proxy) *int { return &p.MaxUserClientConnections }, 0, maxConns),
	duration("query_wait_timeout", func(p *Proxy) *time.Duration { return &p.QueryWaitTimeout }, 0, year),
	duration("query_wait_notify", func(p *Proxy) *time.Duration { return &p.QueryWaitNotify }, 0, year),

	duration("server_idle_timeout", func(p *Proxy) *time.Duration { return &p.ServerIdleTimeout }, 0, year),
	duration("server_lifetime", func(p *Proxy) *time.Duration { return &p.ServerLifetime }, 0, year),
	duration("server_check_delay", func(p *Proxy) *time.Duration { return &p.ServerCheckDelay }, 0, year),
	checkQuery(text("server_check_query", func(p *Proxy) *string { return &p.ServerCheckQuery }, statement)),
	duration("server_connect_timeout", func(p *Proxy) *time.Duration { return &p.ServerConnectTimeout }, 0, day),
	duration("server_login_retry", func(p *Proxy) *time.Duration { return &p.ServerLoginRetry }, 0, day),
	text("server_reset_query", func(p *Proxy) *string { return &p.ServerResetQuery }, statement),
	boolean("server_round_robin", func(p *Proxy) *bool { return &p.ServerRoundRobin }),
	number("max_prepared_statements", func(p *Proxy) *int { return &p.MaxPreparedStatements }, 0, 1_000_000),
	number("max_client_prepared_statements", func(p *Proxy) *int { return &p.MaxClientPreparedStatements }, 0, 1_000_000),
	number("prepared_statement_memory", func(p *Proxy) *int64 { return &p.PreparedStatementMemory }, 0, 1<<40),
	boolean("deferred_begin", func(p *Proxy) *bool { return &p.DeferredBegin }),
	number("session_audit_ratio", func(p *Proxy) *int { return &p.SessionAuditRatio }, 0, 1_000_000),

	enum("server_tls_sslmode", func(p *Proxy) *TLSMode { return &p.ServerTLS.Mode }),
	enum("server_tls_sslnegotiation", func(p *Proxy) *TLSNegotiation { return &p.ServerTLS.Negotiation }),
	text("server_tls_cert_file", func(p *Proxy) *string { return &p.ServerTLS.CertFile }, oneLine),
	text("server_tls_key_file", func(p *Proxy) *string { return &p.ServerTLS.KeyFile }, oneLine),
	text("server_tls_ca_file", func(p *Proxy) *string { return &p.ServerTLS.CAFile }, oneLine),
	list("server_tls_protocols", func(p *Proxy) *[]string { return &p.ServerTLS.Protocols }, tlsProtocol),
	list("server_tls_ciphers", func(p *Proxy) *[]string { return &p.ServerTLS.Ciphers }, tlsCipher),

	duration("server_check_interval", func(p *Proxy) *time.Duration { return &p.ServerCheckInterval }, 10*time.Millisecond, day),
	duration("lsn_interval", func(p *Proxy) *time.Duration { return &p.LSNInterval }, time.Millisecond, day),
	duration("catalog_interval", func(p *Proxy) *time.Duration { return &p.CatalogInterval }, 100*time.Millisecond, day),
	duration("server_ramp", func(p *Proxy) *time.Duration { return &p.ServerRamp }, 0, day),
	duration("dns_max_ttl", func(p *Proxy) *time.Duration { return &p.DNSMaxTTL }, 0, day),
	text("monitor_user", func(p *Proxy) *string { return &p.MonitorUser }, nameOrNone),
	secret("monitor_password", func(p *Proxy) *Secret { return &p.MonitorPassword }),

	duration("client_idle_timeout", func(p *Proxy) *time.Duration { return &p.ClientIdleTimeout }, 0, year),
	duration("idle_transaction_timeout", func(p *Proxy) *time.Duration { return &p.IdleTransactionTimeout }, 0, year),
	duration("transaction_timeout", func(p *Proxy) *time.Duration { return &p.TransactionTimeout }, 0, year),
	duration("query_timeout", func(p *Proxy) *time.Duration { return &p.QueryTimeout }, 0, year),
	duration("cancel_wait_timeout", func(p *Proxy) *time.Duration { return &p.CancelWaitTimeout }, time.Millisecond, day),
	duration("shutdown_timeout", func(p *Proxy) *time.Duration { return &p.ShutdownTimeout }, 0, day),
	duration("drain_delay", func(p *Proxy) *time.Duration { return &p.DrainDelay }, 0, day),
	number("drain_rate", func(p *Proxy) *int { return &p.DrainRate }, 0, maxConns),
	duration("suspend_timeout", func(p *Proxy) *time.Duration { return &p.SuspendTimeout }, 0, day),
	boolean("disable_pqexec", func(p *Proxy) *bool { return &p.DisablePqexec }),
	number("max_packet_size", func(p *Proxy) *int64 { return &p.MaxPacketSize }, 1<<10, 1<<31-1),
	number("max_query_parse_size", func(p *Proxy) *int { return &p.MaxQueryParseSize }, 0, 64<<20),

	boolean("tcp_keepalive", func(p *Proxy) *bool { return &p.TCPKeepalive }),
	duration("tcp_keepidle", func(p *Proxy) *time.Duration { return &p.TCPKeepIdle }, 0, day),
	duration("tcp_keepintvl", func(p *Proxy) *time.Duration { return &p.TCPKeepIntvl }, 0, day),
	number("tcp_keepcnt", func(p *Proxy) *int { return &p.TCPKeepCnt }, 0, 127),
	duration("tcp_user_timeout", func(p *Proxy) *time.Duration { return &p.TCPUserTimeout }, 0, day),

	boolean("log_connections", func(p *Proxy) *bool { return &p.LogConnections }),
	boolean("log_disconnections", func(p *Proxy) *bool { return &p.LogDisconnections }),
	boolean("log_pooler_errors", func(p *Proxy) *bool { return &p.LogPoolerErrors }),
	text("log_level", func(p *Proxy) *string { return &p.LogLevel }, oneOf("debug", "info", "warn", "error")),
	text("logfile", func(p *Proxy) *string { return &p.LogFile }, oneLine),
	boolean("syslog", func(p *Proxy) *bool { return &p.Syslog }),
	text("syslog_ident", func(p *Proxy) *string { return &p.SyslogIdent }, oneLine),
	text("syslog_facility", func(p *Proxy) *string { return &p.SyslogFacility }, oneOf(facilities...)),
	boolean("log_stats", func(p *Proxy) *bool { return &p.LogStats }),
	duration("stats_period", func(p *Proxy) *time.Duration { return &p.StatsPeriod }, time.Second, day),
	boolean("application_name_add_host", func(p *Proxy) *bool { return &p.ApplicationNameAddHost }),
}

// maxConns bounds every count of connections.
const maxConns = 1_000_000

// databaseEntry is [databases.NAME] as it is written.
type databaseEntry struct {
	Database
	Host         string
	Port         int
	PasswordFile string
}

func defaultDatabase(p *Proxy) databaseEntry {
	return databaseEntry{
		Port: 5432,
		Database: Database{
			PoolMode: p.PoolMode, PoolSize: p.DefaultPoolSize, MinPoolSize: p.MinPoolSize,
			MaxDBConnections: p.MaxDBConnections, QueryWaitTimeout: p.QueryWaitTimeout,
			ReservePoolSize: p.ReservePoolSize, MaxDBClientConnections: p.MaxDBClientConnections, ServerLifetime: p.ServerLifetime,
			MonitorUser: p.MonitorUser, MonitorPassword: p.MonitorPassword, TLS: p.ServerTLS,
			AuthUser: p.AuthUser, AuthQuery: p.AuthQuery, AuthDBName: p.AuthDBName,
			Consistency: ConsistencySession, MaxReplicaLag: 10 * time.Second, ShadowRatio: 0.1, FailoverTimeout: 30 * time.Second,
			SwitchoverDrain: 10 * time.Second, ShareDepth: 4, ShareMaxTime: time.Millisecond,
		},
	}
}

// databaseKeys are the keys of [databases.NAME]; servers and rules are read apart.
var databaseKeys = []key[databaseEntry]{
	text("dbname", func(d *databaseEntry) *string { return &d.DBName }, name),
	text("host", func(d *databaseEntry) *string { return &d.Host }, host),
	number("port", func(d *databaseEntry) *int { return &d.Port }, 1, 65535),
	text("user", func(d *databaseEntry) *string { return &d.User }, name),
	secret("password", func(d *databaseEntry) *Secret { return &d.Password }),
	text("password_file", func(d *databaseEntry) *string { return &d.PasswordFile }, oneLine),
	text("monitor_user", func(d *databaseEntry) *string { return &d.MonitorUser }, name),
	secret("monitor_password", func(d *databaseEntry) *Secret { return &d.MonitorPassword }),
	text("auth_user", func(d *databaseEntry) *string { return &d.AuthUser }, nameOrNone),
	text("auth_query", func(d *databaseEntry) *string { return &d.AuthQuery }, statement),
	text("auth_dbname", func(d *databaseEntry) *string { return &d.AuthDBName }, nameOrNone),
	text("connect_query", func(d *databaseEntry) *string { return &d.ConnectQuery }, statement),
	enum("server_tls_sslmode", func(d *databaseEntry) *TLSMode { return &d.TLS.Mode }),
	enum("server_tls_sslnegotiation", func(d *databaseEntry) *TLSNegotiation { return &d.TLS.Negotiation }),
	text("server_tls_cert_file", func(d *databaseEntry) *string { return &d.TLS.CertFile }, oneLine),
	text("server_tls_key_file", func(d *databaseEntry) *string { return &d.TLS.KeyFile }, oneLine),
	text("server_tls_ca_file", func(d *databaseEntry) *string { return &d.TLS.CAFile }, oneLine),
	list("server_tls_protocols", func(d *databaseEntry) *[]string { return &d.TLS.Protocols }, tlsProtocol),
	list("server_tls_ciphers", func(d *databaseEntry) *[]string { return &d.TLS.Ciphers }, tlsCipher),
	enum("pool_mode", func(d *databaseEntry) *PoolMode { return &d.PoolMode }),
	number("pool_size", func(d *databaseEntry) *int { return &d.PoolSize }, 0, maxConns),
	number("min_pool_size", func(d *databaseEntry) *int { return &d.MinPoolSize }, 0, maxConns),
	number("reserve_pool_size", func(d *databaseEntry) *int { return &d.ReservePoolSize }, 0, maxConns),
	number("max_db_connections", func(d *databaseEntry) *int { return &d.MaxDBConnections }, 0, maxConns),
	number("max_db_client_connections", func(d *databaseEntry) *int { return &d.MaxDBClientConnections }, 0, maxConns),
	duration("query_wait_timeout", func(d *databaseEntry) *time.Duration { return &d.QueryWaitTimeout }, 0, year),
	duration("server_lifetime", func(d *databaseEntry) *time.Duration { return &d.ServerLifetime }, 0, year),
	text("client_encoding", func(d *databaseEntry) *string { return &d.ClientEncoding }, oneLine),
	text("datestyle", func(d *databaseEntry) *string { return &d.DateStyle }, oneLine),
	text("timezone", func(d *databaseEntry) *string { return &d.TimeZone }, oneLine),
	text("application_name", func(d *databaseEntry) *string { return &d.ApplicationName }, oneLine),
	number("max_pinned", func(d *databaseEntry) *int { return &d.MaxPinned }, 0, maxConns),
	enum("on_session_state", func(d *databaseEntry) *OnSessionState { return &d.OnSessionState }),
	enum("read_write_split", func(d *databaseEntry) *SplitMode { return &d.ReadWriteSplit }),
	enum("consistency", func(d *databaseEntry) *Consistency { return &d.Consistency }),
	enum("consistency_scope", func(d *databaseEntry) *ConsistencyScope { return &d.ConsistencyScope }),
	duration("causal_wait", func(d *databaseEntry) *time.Duration { return &d.CausalWait }, 0, day),
	duration("max_replica_lag", func(d *databaseEntry) *time.Duration { return &d.MaxReplicaLag }, time.Millisecond, year),
	number("max_replica_lag_bytes", func(d *databaseEntry) *int64 { return &d.MaxReplicaLagBytes }, 0, 1<<60),
	enum("primary_reads", func(d *databaseEntry) *PrimaryReads { return &d.PrimaryReads }),
	enum("load_balance", func(d *databaseEntry) *LoadBalance { return &d.LoadBalance }),
	enum("transaction_reads", func(d *databaseEntry) *TransactionReads { return &d.TransactionReads }),
	ratio("shadow_ratio", func(d *databaseEntry) *float64 { return &d.ShadowRatio }),
	number("share_depth", func(d *databaseEntry) *int { return &d.ShareDepth }, 1, 64),
	duration("share_max_time", func(d *databaseEntry) *time.Duration { return &d.ShareMaxTime }, 0, time.Second),
	duration("failover_timeout", func(d *databaseEntry) *time.Duration { return &d.FailoverTimeout }, 0, day),
	list("read_functions", func(d *databaseEntry) *[]string { return &d.ReadFunctions }, functionPattern),
	list("write_functions", func(d *databaseEntry) *[]string { return &d.WriteFunctions }, functionPattern),
	list("patroni", func(d *databaseEntry) *[]string { return &d.Patroni }, patroniURL),
	text("system_identifier", func(d *databaseEntry) *string { return &d.SystemIdentifier }, systemIdentifier),
	duration("switchover_drain", func(d *databaseEntry) *time.Duration { return &d.SwitchoverDrain }, 0, day),
	boolean("track_commits", func(d *databaseEntry) *bool { return &d.TrackCommits }),
}

func defaultServer() Server { return Server{Port: 5432, Weight: 1} }

// serverKeys are the keys of one entry of servers.
var serverKeys = []key[Server]{
	text("host", func(s *Server) *string { return &s.Host }, host),
	number("port", func(s *Server) *int { return &s.Port }, 1, 65535),
	enum("role", func(s *Server) *ServerRole { return &s.Role }),
	number("weight", func(s *Server) *int { return &s.Weight }, 1, 1000),
	list("groups", func(s *Server) *[]string { return &s.Groups }, group),
}

// userKeys are the keys of [users.NAME].
var userKeys = []key[User]{
	secrets("passwords", func(u *User) *[]Secret { return &u.Passwords }),
	number("pool_size", func(u *User) *int { return &u.PoolSize }, 0, maxConns),
	enum("pool_mode", func(u *User) *PoolMode { return &u.PoolMode }),
	number("reserve_pool_size", func(u *User) *int { return &u.ReservePoolSize }, 0, maxConns),
	number("max_user_connections", func(u *User) *int { return &u.MaxUserConnections }, 0, maxConns),
	number("max_user_client_connections", func(u *User) *int { return &u.MaxUserClientConnections }, 0, maxConns),
	duration("client_idle_timeout", func(u *User) *time.Duration { return &u.ClientIdleTimeout }, 0, year),
	duration("idle_transaction_timeout", func(u *User) *time.Duration { return &u.IdleTransactionTimeout }, 0, year),
	duration("transaction_timeout", func(u *User) *time.Duration { return &u.TransactionTimeout }, 0, year),
	duration("query_timeout", func(u *User) *time.Duration { return &u.QueryTimeout }, 0, year),
	duration("query_wait_timeout", func(u *User) *time.Duration { return &u.QueryWaitTimeout }, 0, year),
	enum("consistency", func(u *User) *Consistency { return &u.Consistency }),
}

// ruleKeys are the keys of one entry of rules.
var ruleKeys = []key[Rule]{
	text("user", func(r *Rule) *string { return &r.User }, name),
	text("application_name", func(r *Rule) *string { return &r.ApplicationName }, glob),
	prefix("client_addr", func(r *Rule) *netip.Prefix { return &r.ClientAddr }),
	pattern("match", func(r *Rule) **regexp.Regexp { return &r.Match }),
	text("target", func(r *Rule) *string { return &r.Target }, target),
}

// peerKeys are the keys of [peers.ID].
var peerKeys = []key[Peer]{
	text("host", func(p *Peer) *string { return &p.Host }, host),
	number("port", func(p *Peer) *int { return &p.Port }, 1, 65535),
	number("pool_size", func(p *Peer) *int { return &p.PoolSize }, 0, maxConns),
}

// facilities are the words of syslog_facility, by their number in syslog(3).
var facilities = []string{
	"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
	"", "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
}
