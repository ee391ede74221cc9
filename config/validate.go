package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// consoles are the names under which clients reach the console.
var consoles = []string{"pgproxy", "pgbouncer"}

// maxPeerClients bounds the clients of a process with peer_id, whose cancel keys
// have room for 65,407 (package proxy, maxSessions).
const maxPeerClients = 60_000

// checkProxy checks the values of [proxy] against each other.
func (p *parser) checkProxy(at place) {
	x := &p.cfg.Proxy
	if p.fine(at, "min_pool_size", "default_pool_size") && x.DefaultPoolSize > 0 && x.MinPoolSize > x.DefaultPoolSize {
		p.fault(at.child("min_pool_size"), "%d is more than default_pool_size: want at most %d", x.MinPoolSize, x.DefaultPoolSize)
	}
	if p.fine(at, "listen_addr", "unix_socket_dir") && len(x.ListenAddr) == 0 && x.UnixSocketDir == "" {
		p.fault(at.child("listen_addr"), "nothing to listen on: want an address here, or unix_socket_dir")
	}
	if p.fine(at, "listen_addr", "listen_port", "http_listen") && samePort(x) {
		if at.has("http_listen") {
			p.fault(at.child("http_listen"), "listen_port is the same: want a port of its own")
		} else {
			p.fault(at.child("listen_port"), "%d is the port of http_listen too, which is %q: want another here or there", x.ListenPort, x.HTTPListen)
		}
	}
	if p.fine(at, "auth_file", "auth_type") && x.AuthFile == "" && x.AuthType.UsesSecrets() {
		p.fault(at.child("auth_file"), "want a file: auth_type %q finds the users there", x.AuthType)
	}
	if p.fine(at, "auth_type", "auth_hba_file") && x.AuthType == AuthHBA && x.AuthHBAFile == "" {
		p.fault(at.child("auth_type"), `%q needs auth_hba_file`, x.AuthType)
	}
	if p.fine(at, "auth_type", "auth_ldap_options") && x.AuthType == AuthLDAP && x.AuthLDAPOptions.Empty() {
		p.fault(at.child("auth_type"), `%q needs auth_ldap_options`, x.AuthType)
	}
	if p.fine(at, "auth_type", "client_tls_sslmode") && x.AuthType == AuthCert && x.ClientTLS.Mode < TLSVerifyCA {
		p.fault(at.child("auth_type"), `%q needs the certificates of clients: want client_tls_sslmode "verify-full" or "verify-ca"`, x.AuthType)
	}
	if most := maxPeerClients; p.fine(at, "peer_id", "max_client_conn") && x.PeerID > 0 && x.MaxClientConn > most {
		p.fault(at.child("max_client_conn"), "%d clients have no room in the cancel keys of a process with peer_id: want at most %d", x.MaxClientConn, most)
	}
	if p.fine(at, "monitor_user", "monitor_password") && x.MonitorUser == "" && !x.MonitorPassword.Empty() {
		p.fault(at.child("monitor_password"), "a password without a user: want monitor_user too")
	}
}

// samePort tells whether HTTP and the clients would share an address.
func samePort(x *Proxy) bool {
	host, port, err := net.SplitHostPort(x.HTTPListen)
	if err != nil || port == "0" || port != strconv.Itoa(x.ListenPort) {
		return false
	}
	return slices.ContainsFunc(x.ListenAddr, func(a string) bool {
		return everywhere(a) || everywhere(host) || canonical(a) == canonical(host)
	})
}

func everywhere(addr string) bool {
	return addr == "" || addr == "*" || addr == "0.0.0.0" || addr == "::"
}

// canonical writes a host in one way.
func canonical(host string) string {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().String()
	}
	if strings.HasPrefix(host, "/") {
		return strings.TrimRight(host, "/")
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// databaseName checks the NAME of [databases.NAME].
func (p *parser) databaseName(at place, given string) {
	if err := name(given); err != nil {
		p.fault(at, "%s", err)
	}
	if slices.Contains(consoles, given) {
		p.fault(at, "%q is the console: want another name", given)
	}
}

// login completes the logins of a database: its own, then that of the health
// checks.
func (p *parser) login(at place, e *databaseEntry) {
	switch {
	case at.has("password") && at.has("password_file"):
		p.fault(at.child("password_file"), "password is given too: want one of the two")
	case at.has("password_file") && p.fine(at, "password_file"):
		p.passwordFile(at.child("password_file"), e)
	}
	for _, name := range []string{"password", "password_file"} {
		if at.has(name) && !at.has("user") {
			p.fault(at.child(name), "a password without a user: want user too")
			break
		}
	}
	x := &p.cfg.Proxy
	if at.has("monitor_user") && !at.has("monitor_password") && e.MonitorUser != x.MonitorUser {
		e.MonitorPassword = "" // the one of [proxy] is another user's
		if e.MonitorUser == e.User {
			e.MonitorPassword = e.Password
		}
	}
	if at.has("monitor_password") && !at.has("monitor_user") && x.MonitorUser == "" {
		p.fault(at.child("monitor_password"), "a password without a user: want monitor_user too")
	}
	if e.MonitorUser == "" {
		e.MonitorUser, e.MonitorPassword = e.User, e.Password
	}
}

// checkDatabase checks the values of one database against each other and against
// [proxy].
func (p *parser) checkDatabase(at place, db *Database) {
	x := &p.cfg.Proxy
	if at.has("pool_size") || at.has("min_pool_size") {
		p.checkPool(at, db)
	}
	asks := len(db.Patroni) > 0 || slices.ContainsFunc(db.Servers, func(s Server) bool { return s.Role == RoleAuto })
	logins := p.fine(at, "user", "password", "password_file", "monitor_user", "monitor_password") &&
		p.fine(p.top.child("proxy"), "monitor_user", "monitor_password")
	if asks && db.MonitorUser == "" && logins && p.rolesFine(at, db) {
		p.fault(at, `a server with role "auto" is asked for its role, and nobody can log in for that: `+
			`want monitor_user and monitor_password (here or in [proxy]), or user and password, or a fixed role for each entry of servers`)
	}
	if x.AuthType == AuthAny && db.User == "" && p.fine(at, "user", "password", "password_file") && p.fine(p.top.child("proxy"), "auth_type") {
		p.fault(at, `no user: want user and password, as with auth_type "any" clients prove no name to log in with`)
	}
}

// checkPool checks the sizes of which one is the database's own.
func (p *parser) checkPool(at place, db *Database) {
	proxy := p.top.child("proxy")
	if !p.fine(at, "pool_size", "min_pool_size") || !p.fine(proxy, "default_pool_size", "min_pool_size") || db.PoolSize == 0 || db.MinPoolSize <= db.PoolSize {
		return
	}
	if at.has("min_pool_size") {
		p.fault(at.child("min_pool_size"), "%d is more than the pool size: want at most %d", db.MinPoolSize, db.PoolSize)
		return
	}
	p.fault(at.child("pool_size"), "%d is less than min_pool_size of [proxy]: want at least %d, or min_pool_size here", db.PoolSize, db.MinPoolSize)
}

// rolesFine tells whether the roles of all servers could be read.
func (p *parser) rolesFine(at place, db *Database) bool {
	list := at.child("servers")
	for i := range db.Servers {
		if !p.fine(list.item(i), "role") {
			return false
		}
	}
	return true
}

// checkServers checks the entries of servers against each other.
func (p *parser) checkServers(list place, servers []Server) {
	primary := -1
	seen := make(map[string]int)
	for i, s := range servers {
		if s.Role == RolePrimary {
			if primary >= 0 {
				p.fault(list.item(i).child("role"), `servers[%d] is the primary already: want one fixed primary, or role "auto" for all that may become it`, primary)
			} else {
				primary = i
			}
		}
		if s.Host == "" {
			continue // reported
		}
		addr := fmt.Sprintf("%s:%d", canonical(s.Host), s.Port)
		if before, twice := seen[addr]; twice {
			p.fault(list.item(i), "%s is servers[%d] already: want each server once", s.Addr(), before)
			continue
		}
		seen[addr] = i
	}
}
