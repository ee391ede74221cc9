package admin

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"pgproxy/pool"
)

var (
	socketNames = []string{
		"type", "user", "database", "replication", "state", "addr", "port", "local_addr", "local_port", "connect_time",
		"request_time", "wait", "wait_us", "close_needed", "ptr", "link", "remote_pid", "tls", "application_name",
		"prepared_statements", "id",
	}
	socketColumns = columns("ssssssisissiiississii", socketNames...)
	clientColumns = columns("ssssssisissiiississii"+"sss", append(socketNames[:len(socketNames):len(socketNames)],
		"pin_reason", "pin_since", "pin_statement")...)
	socketDebugColumns = columns("ssssssisissiiississii"+"iiiiiii", append(socketNames[:len(socketNames):len(socketNames)],
		"recv_pos", "pkt_pos", "pkt_remain", "send_pos", "send_remain", "pkt_avail", "send_avail")...)
	pinColumns = columns("sssisssisis", "database", "user", "server", "server_pid", "reason", "since", "client_addr", "client_id",
		"application_name", "transaction_s", "statement")
)

// socket is one connection of either kind, as SHOW CLIENTS and SHOW SERVERS
// show it.
type socket struct {
	typ, user, database, state string
	remote, local              endpoint
	connect, request           any
	wait                       time.Duration
	closeNeeded                bool
	ptr, link                  string
	pid                        uint32
	tls, app                   string
	prepared                   int
	id                         int64

	// Of a client whose server connection stays with it.
	pinReason, pinStatement string
	pinSince                any
	kind                    string // of replication; "" is none
}

func (s *socket) replication() string { return cmp.Or(s.kind, "none") }

// endpoint is an address in two columns.
type endpoint struct {
	addr string
	port int
}

// splitAddr reads "host:port" or the path of a Unix socket. An end of a Unix
// socket without a name is "unix".
func splitAddr(s string) endpoint {
	if dir, file := filepath.Split(s); strings.HasPrefix(file, ".s.PGSQL.") {
		port, _ := strconv.Atoi(strings.TrimPrefix(file, ".s.PGSQL."))
		return endpoint{filepath.Clean(dir), port}
	}
	if s == "" || s[0] == '@' {
		return endpoint{"unix", 0}
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return endpoint{s, 0}
	}
	n, _ := strconv.Atoi(port)
	return endpoint{host, n}
}

func (s *socket) row() row {
	sec, us := parts(s.wait)
	needed := 0
	if s.closeNeeded {
		needed = 1
	}
	return row{
		s.typ, s.user, s.database, s.replication(), s.state, s.remote.addr, s.remote.port, s.local.addr, s.local.port, s.connect, s.request,
		sec, us, needed, s.ptr, s.link, int64(s.pid), s.tls, s.app, s.prepared, s.id,
	}
}

// serverKey tells server connections apart.
type serverKey struct {
	addr string
	pid  uint32
}

// serverID is a number for a server connection that stays the same for its
// life and that hardly another one has.
func serverID(s *pool.ServerInfo) int64 {
	h := fnv.New32a()
	fmt.Fprintf(h, "%s/%d/%d", s.Addr, s.PID, s.Since.UnixNano())
	return int64(h.Sum32() & 0x7fffffff)
}

func serverPtr(id int64) string { return fmt.Sprintf("0x5%08x", id) }
func clientPtr(id int64) string { return fmt.Sprintf("0xc%08x", id) }

// sockets returns all clients and all server connections, linked.
func (c *call) sockets() (clients, servers []socket) {
	ptrs := make(map[serverKey]string)
	list := c.console.opt.Pools.Servers()
	for i := range list {
		ptrs[serverKey{list[i].Addr, list[i].PID}] = serverPtr(serverID(&list[i]))
	}
	links := make(map[serverKey]string)
	own := make(map[uint64]*client)
	for _, cl := range c.console.list() {
		own[cl.pc.Session] = cl
	}
	for _, s := range c.console.opt.Server.Sessions() {
		x := socket{
			typ: "C", user: s.User, database: s.Database, state: s.State, remote: splitAddr(s.Addr), local: splitAddr(s.LocalAddr),
			connect: stamp(s.Since), request: stamp(s.Seen), wait: s.Wait, tls: s.TLS, app: s.AppName, prepared: s.Prepared,
			id: int64(s.ID), ptr: clientPtr(int64(s.ID)), kind: s.Replication,
		}
		if cl := own[s.ID]; cl != nil {
			cl.fill(&x)
			delete(own, s.ID)
		}
		if s.Server != nil {
			k := serverKey{s.Server.Addr, s.Server.PID}
			x.link, links[k] = ptrs[k], x.ptr
			x.pinReason, x.pinStatement, x.pinSince = s.Server.Pinned.String(), s.Server.PinnedBy, optional(stamp(s.Server.PinnedFrom()).(string))
		}
		clients = append(clients, named(x))
	}
	for i := range list {
		s := &list[i]
		id := serverID(s)
		servers = append(servers, named(socket{
			typ: "S", user: s.Pool.User, database: s.Pool.Database, state: s.State, remote: splitAddr(s.Addr), local: splitAddr(s.LocalAddr),
			connect: stamp(s.Since), request: stamp(s.Requested), closeNeeded: s.CloseNeeded, ptr: serverPtr(id),
			link: links[serverKey{s.Addr, s.PID}], pid: s.PID, tls: s.TLS, app: s.AppName, prepared: s.Prepared, id: id, kind: s.Replication,
		}))
	}
	return clients, servers
}

// fill adds what only the console knows of its own clients.
func (c *client) fill(x *socket) {
	x.user, x.database, x.state = c.pc.Identity.User, c.pc.Database, "idle"
	if c.active.Load() {
		x.state = "active"
	}
	x.request = stamp(time.Unix(0, c.seen.Load()))
	x.prepared = int(c.named.Load())
}

// named gives a client that has not logged in yet PgBouncer's placeholders.
func named(x socket) socket {
	if x.user == "" {
		x.user = "(nouser)"
	}
	if x.database == "" {
		x.database = "(nodb)"
	}
	return x
}

func showClients(c *call) []row {
	clients, _ := c.sockets()
	var out []row
	for i := range clients {
		if clients[i].state != "login" { // as in PgBouncer
			x := &clients[i]
			out = append(out, append(x.row(), optional(x.pinReason), x.pinSince, optional(x.pinStatement)))
		}
	}
	return out
}

func showServers(c *call) []row {
	_, servers := c.sockets()
	var out []row
	for i := range servers {
		out = append(out, servers[i].row())
	}
	return out
}

func showSockets(c *call) []row       { return c.debugRows("") }
func showActiveSockets(c *call) []row { return c.debugRows("active") }

// debugRows are the rows of SHOW SOCKETS. Positions in buffers are 0: an idle
// connection has none, and a busy one is not stopped to look.
func (c *call) debugRows(state string) []row {
	clients, servers := c.sockets()
	var out []row
	for i, list := range [][]socket{clients, servers} {
		for _, s := range list {
			if state != "" && s.state != state {
				continue
			}
			s.state = []string{"cl_", "sv_"}[i] + s.state
			out = append(out, append(s.row(), 0, 0, 0, 0, 0, 0, 0))
		}
	}
	return out
}

var auditColumns = columns("sssissssss", "time", "database", "server", "server_pid", "server_user", "user", "client_addr",
	"application_name", "found", "statement")

// showAudit lists what audits of sessions have found of late.
func showAudit(c *call) []row {
	var out []row
	for _, f := range c.console.opt.Pools.Findings() {
		out = append(out, row{
			stamp(f.At), f.Pool.Database, f.Pool.Server, int64(f.PID), f.Pool.User, f.User, f.Addr, f.Application,
			strings.Join(f.What, ", "), optional(f.Statement),
		})
	}
	return out
}

// showPins lists the server connections that stay with their clients, and why.
func showPins(c *call) []row {
	type holder struct {
		addr, app string
		id        int64
	}
	holders := make(map[serverKey]holder)
	for _, s := range c.console.opt.Server.Sessions() {
		if s.Server != nil {
			holders[serverKey{s.Server.Addr, s.Server.PID}] = holder{s.Addr, s.AppName, int64(s.ID)}
		}
	}
	var out []row
	for _, s := range c.console.opt.Pools.Servers() {
		if s.Pinned == 0 || s.Apart {
			continue
		}
		r := row{
			s.Pool.Database, s.Pool.User, s.Addr, int64(s.PID), s.Pinned.String(), stamp(s.PinnedFrom()),
			nil, nil, nil, int64(s.XactFor / time.Second), optional(s.PinnedBy),
		}
		if h, ok := holders[serverKey{s.Addr, s.PID}]; ok {
			r[6], r[7], r[8] = h.addr, h.id, h.app
		}
		out = append(out, r)
	}
	return out
}
