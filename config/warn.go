package config

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// warnProxy finds what is risky in [proxy].
func (p *parser) warnProxy(at place) {
	x := &p.cfg.Proxy
	if far := slices.DeleteFunc(slices.Clone(x.ListenAddr), loopback); len(far) > 0 {
		auth := at.child("auth_type")
		switch x.AuthType {
		case AuthTrust, AuthAny:
			p.warn(auth, "%q asks nobody for a password, and clients of other machines reach listen_addr %s", x.AuthType, quote(far[0]))
		case AuthPlain:
			p.warn(auth, "%q sends passwords in clear text, and clients of other machines reach listen_addr %s", x.AuthType, quote(far[0]))
		}
	}
	for _, w := range []struct {
		key   string
		value time.Duration
		text  string
	}{
		{"client_login_timeout", x.ClientLoginTimeout, "0 lets clients that never log in hold their connection for ever"},
		{"query_wait_timeout", x.QueryWaitTimeout, "0 lets clients wait for a server connection for ever"},
		{"server_connect_timeout", x.ServerConnectTimeout, "0 lets a server that does not answer block new connections for ever"},
		{"shutdown_timeout", x.ShutdownTimeout, "0 lets one transaction that never ends hold up a shutdown for ever"},
	} {
		if w.value == 0 {
			p.warn(at.child(w.key), "%s", w.text)
		}
	}
	if len(p.cfg.Peers) > 0 && x.PeerID == 0 {
		p.warn(at.child("peer_id"), "0 with [peers]: no cancel request is passed on")
	}
	if !x.TCPKeepalive {
		p.warn(at.child("tcp_keepalive"), "false leaves connections to machines that are gone open for ever")
	}
	if x.ServerResetQuery == "" && p.sessionMode() {
		p.warn(at.child("server_reset_query"), "without one, a session's settings and temporary tables pass to the next client where pool_mode is \"session\"")
	}
}

// sessionMode tells whether any pool may be lent for a session.
func (p *parser) sessionMode() bool {
	for _, db := range p.cfg.Databases {
		if db.PoolMode == PoolSession {
			return true
		}
	}
	for _, u := range p.cfg.Users {
		if u.PoolMode == PoolSession {
			return true
		}
	}
	return false
}

func loopback(addr string) bool {
	ip, err := netip.ParseAddr(addr)
	return err == nil && ip.Unmap().IsLoopback() || strings.EqualFold(addr, "localhost")
}

// warnDatabase finds what is risky in one database.
func (p *parser) warnDatabase(at place, db *Database) {
	if at.has("query_wait_timeout") && db.QueryWaitTimeout == 0 {
		p.warn(at.child("query_wait_timeout"), "0 lets clients wait for a server connection for ever")
	}
	list := at.child("servers")
	if len(db.Patroni) == 0 && !slices.ContainsFunc(db.Servers, func(s Server) bool { return s.Role != RoleReplica }) {
		p.warn(list, "all servers are replicas: what may write waits for failover_timeout and fails")
	}
	if db.MonitorUser == "" && db.ReadWriteSplit.Splits() && replicas(db) > 0 {
		p.warn(at, "nobody can log in to read the catalog, so only statements without tables and functions go to replicas: want monitor_user and monitor_password")
	}
	if len(db.Patroni) == 0 && db.PrimaryReads == PrimaryReadsNever && db.ReadWriteSplit != SplitOff && replicas(db) == 0 {
		p.warn(at.child("primary_reads"), "%q with no server that could be a replica: reads find no server", db.PrimaryReads)
	}
	if db.MaxDBConnections > 0 && db.MaxDBConnections < db.MinPoolSize && (at.has("max_db_connections") || at.has("min_pool_size")) {
		p.warn(at, "max_db_connections %d is less than min_pool_size %d, which no pool can then keep", db.MaxDBConnections, db.MinPoolSize)
	}
}

// replicas counts the servers that may be replicas while another is the primary.
func replicas(db *Database) int {
	n, fixed := 0, false
	for _, s := range db.Servers {
		if s.Role == RolePrimary {
			fixed = true
		} else {
			n++
		}
	}
	if !fixed && !slices.ContainsFunc(db.Servers, func(s Server) bool { return s.Role == RoleReplica }) {
		n-- // one of those that say themselves is the primary
	}
	return n
}

// warnReadable finds passwords in a configuration that everybody may read.
func (p *parser) warnReadable() {
	if len(p.secrets) == 0 {
		return
	}
	if info, err := os.Stat(p.path); err != nil || info.Mode().Perm()&0o004 == 0 {
		return
	}
	for _, at := range p.secrets {
		p.warn(at, "every user of this machine may read the password: want chmod o-r for the file, or password_file")
	}
}
