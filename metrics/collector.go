package metrics

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"pgproxy/monitor"
	"pgproxy/pool"
)

// collector renders copies of what the other packages count, at each scrape.
type collector struct{ m *Metrics }

// Describe sends nothing: which metrics there are depends on the pools, so they
// are not checked when the collector is registered.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect asks everybody for a copy and sends what is in it.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := sender{ch}
	s.gauge(build, 1, c.m.opt.Version)
	c.pools(s)
	c.health(s)
	c.server(s)
	s.counter(logins, float64(c.m.loginsOK.value()), "ok")
	s.counter(logins, float64(c.m.loginsFailed.value()), "failed")
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("pgproxy_"+name, help, labels, nil)
}

func ofPool(name, help string, more ...string) *prometheus.Desc {
	return desc("pool_"+name, help, append([]string{"database", "user", "server"}, more...)...)
}

func ofServer(name, help string, more ...string) *prometheus.Desc {
	return desc("server_"+name, help, append([]string{"database", "server"}, more...)...)
}

func ofHost(name, help string) *prometheus.Desc { return desc("host_"+name, help, "server") }

func ofListener(name, help string) *prometheus.Desc {
	return desc("listener_"+name, help, "database", "user")
}

var (
	build = desc("build_info", "The version that runs; always 1.", "version")

	clients        = desc("clients", "Clients connected now, logged in or not.")
	clientsMax     = desc("clients_max", "max_client_conn.")
	clientSessions = desc("client_sessions", "Clients by database and state: active, idle or waiting.", "database", "state")
	refused        = desc("clients_refused_total", "Clients refused over max_client_conn.")
	limited        = desc("logins_limited_total", "Logins refused over auth_failure_limit.")
	logins         = desc("logins_total", "Logins of clients, ok or failed.", "result")
	panics         = desc("panics_total", "Sessions that ended with a panic: each is a bug.")
	statements     = desc("prepared_statements", "Distinct prepared statements that are remembered.")
	statementBytes = desc("prepared_statement_bytes", "Memory that they take, by estimate.")
	reruns         = desc("reruns_total", "Statements that were run again without their clients' noticing, by cause.", "cause")
	refusedShapes  = desc("refused_shapes_total", "Statement shapes that a standby has refused: they stay on the primary.")
	replicas       = desc("replication_connections", "Replication connections, each with a server connection of its own.")
	replicasMax    = desc("replication_connections_max", "max_replication_connections.")
	draining       = desc("draining", "1 while the proxy is shutting down.")
	routed         = desc("routed_total", "Leases of server connections by the role that was chosen, and why.", "database", "role", "reason")

	hostConns    = ofHost("connections", "Server connections over all pools, as max_host_connections counts them.")
	hostConnsMax = ofHost("connections_max", "max_host_connections; 0 is no limit.")
	hostWaiting  = ofHost("pools_waiting", "Pools that wait for a place under max_host_connections.")

	listenerUp        = ofListener("up", "1 while the connection that listens for clients is there.")
	listenerChannels  = ofListener("channels", "Channels that it listens to.")
	listenerClients   = ofListener("clients", "Clients that it listens for.")
	listenerHeard     = ofListener("notifications_total", "Notifications from the server.")
	listenerDelivered = ofListener("delivered_total", "Notifications handed to clients.")
	listenerLost      = ofListener("reconnects_total", "How often the connection had to be made anew.")

	poolWaiting     = ofPool("clients_waiting", "Clients that wait for a server connection.")
	poolMaxWait     = ofPool("max_wait_seconds", "How long the oldest of them has waited.")
	poolConns       = ofPool("connections", "Server connections by state.", "state")
	poolPinned      = ofPool("connections_pinned", "Server connections that stay with their clients, by reason; one may have several.", "reason")
	poolSize        = ofPool("connections_max", "pool_size.")
	poolPaused      = ofPool("paused", "1 while the pool is paused.")
	poolXacts       = ofPool("transactions_total", "Transactions.")
	poolQueries     = ofPool("queries_total", "Queries.")
	poolReceived    = ofPool("received_bytes_total", "Bytes from clients.")
	poolSent        = ofPool("sent_bytes_total", "Bytes to clients.")
	poolParses      = ofPool("client_parses_total", "Parse messages from clients.")
	poolPrepares    = ofPool("server_parses_total", "Parse messages to servers.")
	poolBinds       = ofPool("binds_total", "Bind messages from clients.")
	poolPins        = ofPool("pins_total", "How often a server connection was pinned to a client.")
	poolAudits      = ofPool("audits_total", "How often the state of a session was looked at.")
	poolAdopted     = ofPool("settings_changed_total", "Settings of server connections that were set or reset for the next client.")
	poolFindings    = ofPool("audit_findings_total", "How often there was something in it that no statement has announced.")
	poolLeases      = ofPool("leases_total", "How often a server connection was lent.")
	poolShared      = ofPool("shared_statements_total", "Reads that were sent behind those of other clients on a busy server connection.")
	poolWidth       = ofPool("share_width", "Over how many server connections reads spread before they share; 0: over all.")
	poolOpened      = ofPool("opened_total", "Server connections opened.")
	poolLoginFailed = ofPool("login_failures_total", "Logins that a server refused, or could not be reached for.")
	poolWait        = ofPool("wait_seconds", "Wait of clients for a server connection.")
	poolQueryTime   = ofPool("query_seconds", "Time of queries on the server.")
	poolXactTime    = ofPool("transaction_seconds", "Time of transactions on the server.")

	serverUp       = ofServer("up", "1 if the last check was answered.")
	serverRole     = ofServer("role", "1 for the role that the server has: primary, replica or unknown.", "role")
	serverLag      = ofServer("lag_seconds", "Age of the oldest WAL position of the primary that a replica has not replayed; 0 if none.")
	serverLagBytes = ofServer("lag_bytes", "WAL that a replica has not replayed yet.")
	serverLoad     = ofServer("leases", "Connections that are lent now, over all databases.")
	serverWeight   = ofServer("weight", "Configured share of the reads.")
	serverChecks   = ofServer("checks_total", "Health checks.")
	serverFailures = ofServer("check_failures_total", "Health checks that failed.")
	serverTimeline = ofServer("timeline", "Timeline of the server's WAL; 0 is not known.")
	serverFenced   = ofServer("fenced", "1 if the server must not be used: another one is the primary, or it belongs to another cluster.")
	serverBanned   = ofServer("banned", "1 if a replica that came and went gets no reads for a while.")
	serverLate     = ofServer("late", "1 if a replica lags more than is allowed.")
	serverDelay    = ofServer("replay_delay_seconds", "Age of the last transaction that a replica has replayed; 0 if it has replayed all that it has received.")

	writesHalted  = desc("database_writes_halted", "1 for the reason why no server takes writes, whatever its role.", "database", "reason")
	dbTimeline    = desc("database_timeline", "Newest timeline on which a primary was seen.", "database")
	dbPromotions  = desc("database_promotions_total", "New timelines that were seen begin.", "database")
	patroniUp     = desc("patroni_up", "1 if Patroni answered the last question.", "database")
	patroniPaused = desc("patroni_paused", "1 while Patroni is in maintenance mode.", "database")
)

func (c collector) pools(s sender) {
	for _, h := range c.m.opt.Pools.Hosts() {
		s.gauge(hostConns, float64(h.Used), h.Server)
		s.gauge(hostConnsMax, float64(h.Most), h.Server)
		s.gauge(hostWaiting, float64(h.Waiting), h.Server)
	}
	for _, st := range c.m.opt.Pools.Stats() {
		db, user, addr := st.Key.Database, st.Key.User, st.Key.Server
		gauge := func(d *prometheus.Desc, v float64, more ...string) {
			s.gauge(d, v, append([]string{db, user, addr}, more...)...)
		}
		gauge(poolWaiting, float64(st.Waiting))
		gauge(poolMaxWait, st.MaxWait.Seconds())
		for state, n := range map[string]int{
			"active": st.Active, "idle": st.Idle, "used": st.Used, "tested": st.Tested, "login": st.Login, "being_canceled": st.BeingCanceled,
		} {
			gauge(poolConns, float64(n), state)
		}
		for why, n := range st.PinReasons {
			gauge(poolPinned, float64(n), why)
		}
		gauge(poolSize, float64(st.Limits.Size))
		gauge(poolPaused, truth(st.Paused))
		gauge(poolWidth, float64(st.Width))
		n := &st.Counters
		for d, v := range map[*prometheus.Desc]uint64{
			poolXacts: n.Xacts, poolQueries: n.Queries, poolReceived: n.Received, poolSent: n.Sent, poolParses: n.ClientParses,
			poolPrepares: n.ServerParses, poolBinds: n.Binds, poolPins: n.Pins, poolAudits: n.Audits, poolFindings: n.AuditFindings, poolAdopted: n.Adopted, poolLeases: st.Assigned, poolShared: n.Shared, poolOpened: st.Opened,
			poolLoginFailed: st.LoginFail,
		} {
			s.counter(d, float64(v), db, user, addr)
		}
		s.histogram(poolWait, st.Wait.Buckets[:], st.Wait.Sum, st.Key)
		s.histogram(poolQueryTime, n.QueryTime.Buckets[:], n.QueryTime.Sum, st.Key)
		s.histogram(poolXactTime, n.XactTime.Buckets[:], n.XactTime.Sum, st.Key)
	}
}

func (c collector) health(s sender) {
	if c.m.opt.Monitor == nil {
		return
	}
	for _, st := range c.m.opt.Monitor.Status() {
		s.gauge(serverUp, truth(st.Up), st.Database, st.Addr)
		for _, role := range []string{rolePrimary, "replica", "unknown"} {
			s.gauge(serverRole, truth(st.Role.String() == role), st.Database, st.Addr, role)
		}
		s.gauge(serverLag, st.Lag.Seconds(), st.Database, st.Addr)
		s.gauge(serverLagBytes, float64(st.LagBytes), st.Database, st.Addr)
		s.gauge(serverLoad, float64(st.Load), st.Database, st.Addr)
		s.gauge(serverWeight, float64(st.Weight), st.Database, st.Addr)
		s.counter(serverChecks, float64(st.Checks), st.Database, st.Addr)
		s.counter(serverFailures, float64(st.Failures), st.Database, st.Addr)
		s.gauge(serverTimeline, float64(st.Timeline), st.Database, st.Addr)
		s.gauge(serverFenced, truth(st.Fenced), st.Database, st.Addr)
		s.gauge(serverBanned, truth(!st.Banned.IsZero()), st.Database, st.Addr)
		s.gauge(serverLate, truth(st.Slow), st.Database, st.Addr)
		s.gauge(serverDelay, st.Delay.Seconds(), st.Database, st.Addr)
	}
	for _, db := range c.m.opt.Monitor.States() {
		for _, reason := range monitor.HaltedReasons {
			s.gauge(writesHalted, truth(db.Halted == reason), db.Database, string(reason))
		}
		s.gauge(dbTimeline, float64(db.Timeline), db.Database)
		s.counter(dbPromotions, float64(db.Promotions), db.Database)
		if db.Patroni != "" {
			s.gauge(patroniUp, truth(db.Patroni == "ok"), db.Database)
			s.gauge(patroniPaused, truth(db.Paused), db.Database)
		}
	}
}

func (c collector) server(s sender) {
	srv := c.m.server.Load()
	if srv == nil {
		return
	}
	st := srv.Stats()
	s.gauge(clients, float64(st.Clients))
	s.gauge(clientsMax, float64(srv.Settings().Config.Proxy.MaxClientConn))
	s.gauge(replicas, float64(st.Replicas))
	s.gauge(replicasMax, float64(srv.Settings().Config.Proxy.MaxReplicationConnections))
	s.gauge(statements, float64(st.Statements))
	s.gauge(statementBytes, float64(st.StatementBytes))
	s.counter(reruns, float64(st.Rerun.Stale), "stale")
	s.counter(reruns, float64(st.Rerun.Refused), "refused")
	s.counter(reruns, float64(st.Rerun.Conflict), "conflict")
	s.counter(reruns, float64(st.Rerun.Died), "died")
	s.counter(refusedShapes, float64(st.Healed))
	s.gauge(draining, truth(st.Draining))
	s.counter(refused, float64(st.Refused))
	s.counter(limited, float64(st.Limited))
	s.counter(panics, float64(st.Panics))
	for _, r := range srv.Routes() {
		s.counter(routed, float64(r.Count), r.Database, r.Role.String(), string(r.Reason))
	}
	states := make(map[[2]string]int)
	for _, x := range srv.Sessions() {
		if x.Database != "" { // logged in, and not to the console
			states[[2]string{x.Database, x.State}]++
		}
	}
	for k, n := range states {
		s.gauge(clientSessions, float64(n), k[0], k[1])
	}
	for _, l := range srv.Listeners() {
		s.gauge(listenerUp, truth(l.Server != ""), l.Database, l.User)
		s.gauge(listenerChannels, float64(l.Channels), l.Database, l.User)
		s.gauge(listenerClients, float64(l.Clients), l.Database, l.User)
		s.counter(listenerHeard, float64(l.Notifications), l.Database, l.User)
		s.counter(listenerDelivered, float64(l.Delivered), l.Database, l.User)
		s.counter(listenerLost, float64(l.Reconnects), l.Database, l.User)
	}
}

// sender writes metrics to one scrape.
type sender struct{ ch chan<- prometheus.Metric }

func (s sender) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, clean(labels)...)
}

func (s sender) counter(d *prometheus.Desc, v float64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, clean(labels)...)
}

// firstBound and lastBound are the buckets of 64 us and 67 s: what lies outside
// would cost a series for each pool and tell little.
const (
	firstBound = 6
	lastBound  = 26
)

// histogram sends a backend.Histogram: bucket i holds what is below 2^i
// microseconds and not in a lower one.
func (s sender) histogram(d *prometheus.Desc, buckets []uint64, sum time.Duration, k pool.Key) {
	count := uint64(0)
	bounds := make(map[float64]uint64, lastBound-firstBound+1)
	for i, n := range buckets {
		count += n
		if i >= firstBound && i <= lastBound && i < len(buckets)-1 {
			bounds[(time.Microsecond << i).Seconds()] = count
		}
	}
	s.ch <- prometheus.MustNewConstHistogram(d, count, sum.Seconds(), bounds, clean([]string{k.Database, k.User, k.Server})...)
}

// clean escapes labels that are not UTF-8, which Prometheus refuses: clients
// choose the names of users and, with "*", of databases.
func clean(labels []string) []string {
	for i, l := range labels {
		if !utf8.ValidString(l) {
			labels[i] = strings.Trim(strconv.QuoteToASCII(l), `"`)
		}
	}
	return labels
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
