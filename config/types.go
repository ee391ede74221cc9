package config

import (
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is one complete configuration.
type Config struct {
	Path      string               // file it was read from
	Proxy     Proxy                // [proxy]
	Databases map[string]*Database // [databases.NAME], by the name that clients ask for; "*" is any other name
	Users     map[string]*User     // [users.NAME], by name
	Peers     map[int]*Peer        // [peers.ID]: other processes behind the same address
	Warnings  []string             // risky but accepted, one line each: "FILE:LINE: KEY: TEXT"

	source *source // what it was made of, for With
}

// Proxy is the section [proxy]: what concerns the process, and what databases and
// users inherit. A duration, size or limit of 0 means "none" unless it says
// otherwise.
type Proxy struct {
	// Listening; a change needs a restart.
	ListenAddr    []string // addresses of the TCP listeners; "*" is all interfaces
	ListenPort    int      // TCP port and part of the socket's file name; 0 is any free port
	UnixSocketDir string   // folder of the Unix socket, or from "@" an abstract name; "" is none
	HTTPListen    string   // HOST:PORT of metrics and health; "" is none

	// Networks whose connections begin with a PROXY header.
	ProxyProtocol []string

	// The process; a change needs a restart.
	UnixSocketMode  FileMode
	UnixSocketGroup string // owns the socket's file; "" is the process's
	SoReuseport     bool   // other processes may listen on the same address
	PidFile         string // "" is none; absolute, or relative to the working directory
	User            string // role of the operating system to become; "" is none
	PeerID          int    // of this process among its peers; 0 is none

	// Login.
	AuthType                AuthType
	AuthFile                string // absolute, or relative to the working directory, as the file's path was
	AuthHBAFile             string // with AuthHBA
	AuthIdentFile           string // maps of names for it; "" is none
	AuthLDAPOptions         Secret // with AuthLDAP, and for lines of AuthHBAFile that have none; may hold a password
	AuthUser                string // asks servers for the secrets of users that AuthFile does not have; "" is nobody
	AuthQuery               string // what it asks; $1 is the user's name
	AuthDBName              string // of the entry of [databases] where it asks; "" is the one that the client wants
	AuthQueryTTL            time.Duration
	AdminUsers              []string // may use the whole console
	StatsUsers              []string // may use SHOW on the console
	ClientLoginTimeout      time.Duration
	AuthFailureLimit        int           // failed logins as one user from one address; 0 is no limit
	AuthFailurePeriod       time.Duration // in which so many are forgotten
	IgnoreStartupParameters []string      // startup parameters that are accepted and dropped

	ClientTLS TLS // of the connections that clients open

	// Pools.
	PoolMode                  PoolMode
	DefaultPoolSize           int // server connections for each database, user and server; 0 is no limit
	MinPoolSize               int // server connections that are kept open
	ReservePoolSize           int // beyond the pool's size, for clients that have waited for ReservePoolTimeout
	ReservePoolTimeout        time.Duration
	MaxClientConn             int // clients of the process
	MaxReplicationConnections int // replication connections of the process; 0 refuses them
	MaxDBConnections          int // server connections of one database to one server, over all pools
	MaxUserConnections        int // server connections of one user to one server, over all pools
	MaxHostConnections        int // server connections to one server, over all pools
	QueryWaitTimeout          time.Duration
	QueryWaitNotify           time.Duration // a client that waits so long is told

	MaxDBClientConnections   int // clients of one database
	MaxUserClientConnections int // clients of one user

	// Server connections.
	ServerIdleTimeout     time.Duration
	ServerLifetime        time.Duration
	ServerCheckDelay      time.Duration // idle time after which a connection is checked before it is lent
	ServerCheckQuery      string        // "" is the empty query, CheckQueryOff is never
	ServerConnectTimeout  time.Duration // connect and login
	ServerLoginRetry      time.Duration // pause of a pool after a failed login
	ServerResetQuery      string        // "" is none
	ServerRoundRobin      bool          // lend the connection that was used least recently, not the last one
	MaxPreparedStatements int           // on each server connection; 0 is no limit
	DeferredBegin         bool          // BEGIN takes no server connection before there is a statement
	SessionAuditRatio     int           // one in so many transactions is followed by an audit of the session; 0 is none

	MaxClientPreparedStatements int   // of one client; 0 is no limit
	PreparedStatementMemory     int64 // of all clients, in bytes; 0 is no limit

	ServerTLS TLS // of the connections to servers

	// Health of servers.
	ServerCheckInterval time.Duration // between two checks of role and lag
	ServerRamp          time.Duration // a replica that has come back gets its full share of the reads after this time
	DNSMaxTTL           time.Duration // how long a host's addresses are taken for good
	LSNInterval         time.Duration // between two samples of the primary's WAL position
	CatalogInterval     time.Duration // between two readings of a database's catalog
	MonitorUser         string        // logs in for the checks where a database has no login of its own
	MonitorPassword     Secret

	// Limits on clients.
	ClientIdleTimeout      time.Duration
	IdleTransactionTimeout time.Duration
	TransactionTimeout     time.Duration
	QueryTimeout           time.Duration
	CancelWaitTimeout      time.Duration // a cancel request waits so long to reach its server
	ShutdownTimeout        time.Duration // a drain is cut after this time
	DrainDelay             time.Duration // a drain is announced so long before the listeners close
	DrainRate              int           // clients that a drain sends away each second; 0 is no limit
	SuspendTimeout         time.Duration // what is not at rest so long after SUSPEND is cut
	DisablePqexec          bool          // simple queries are refused
	MaxPacketSize          int64         // bytes of one message
	MaxQueryParseSize      int           // bytes; a longer statement is not parsed and goes to the primary

	// TCP, in the units of the kernel's options.
	TCPKeepalive   bool
	TCPKeepIdle    time.Duration // 0 is the system's
	TCPKeepIntvl   time.Duration // 0 is the system's
	TCPKeepCnt     int           // 0 is the system's
	TCPUserTimeout time.Duration // on server connections; 0 is the system's

	// Logs and statistics.
	LogConnections         bool
	LogDisconnections      bool
	LogPoolerErrors        bool
	LogLevel               string // debug, info, warn or error
	LogFile                string // besides stderr; "" is none
	Syslog                 bool
	SyslogIdent            string
	SyslogFacility         string
	LogStats               bool // a line of statistics each StatsPeriod
	StatsPeriod            time.Duration
	ApplicationNameAddHost bool
}

// SendsHeader reports whether connections from an address begin with a PROXY
// header.
func (p *Proxy) SendsHeader(from netip.Addr) bool {
	from = from.Unmap().WithZone("")
	return slices.ContainsFunc(p.ProxyProtocol, func(s string) bool {
		net, err := network(s)
		return err == nil && net.Contains(from)
	})
}

// CheckQueryOff as ServerCheckQuery: server connections are never checked before
// they are lent.
const CheckQueryOff = "off"

// Database is one [databases.NAME]. What it inherits from [proxy] is filled in.
type Database struct {
	// Where it is.
	Name    string // that clients ask for, or "*"
	DBName  string // on the servers; in an entry "*" without one, the database of the health checks
	Servers []Server

	anyDBName bool // "*" without a dbname: Config.Database gives the client's

	// Login to the servers; User "" is the client's own name.
	User            string
	Password        Secret
	MonitorUser     string // login of the health checks, after inheritance; empty only where every role is fixed
	MonitorPassword Secret
	ConnectQuery    string // run on each new server connection; errors are logged

	AuthUser, AuthQuery, AuthDBName string // as in Proxy, after inheritance

	TLS TLS // of the connections to the servers

	// Pools.
	PoolMode         PoolMode // never PoolInherit
	PoolSize         int
	MinPoolSize      int
	ReservePoolSize  int
	MaxDBConnections int // 0 is no limit
	QueryWaitTimeout time.Duration
	ServerLifetime   time.Duration // 0 is no limit

	MaxDBClientConnections int // 0 is no limit

	// Parameters of the login to the servers; "" is the server's default.
	ClientEncoding, DateStyle, TimeZone, ApplicationName string

	// Session state.
	MaxPinned      int // server connections of a pool that it may pin to clients; 0 is half of the pool
	OnSessionState OnSessionState

	// Routing.
	ReadWriteSplit     SplitMode
	Consistency        Consistency // never ConsistencyInherit
	ConsistencyScope   ConsistencyScope
	CausalWait         time.Duration // a read waits so long for a replica that shows what it must see
	MaxReplicaLag      time.Duration
	MaxReplicaLagBytes int64 // 0 is no limit
	PrimaryReads       PrimaryReads
	LoadBalance        LoadBalance
	TransactionReads   TransactionReads
	ShadowRatio        float64       // share of the reads that SplitShadow compares, 0 to 1
	ShareDepth         int           // so many clients may have single reads on one server connection; 1: each has its own
	ShareMaxTime       time.Duration // reads whose mean is longer are not shared with others
	FailoverTimeout    time.Duration // a transaction waits so long for a primary
	Rules              []Rule        // the first that fits decides
	ReadFunctions      []string      // patterns of functions that are taken for reads; see FunctionPattern
	WriteFunctions     []string      // of functions that never go to a replica, whatever they are declared

	// Failover.
	Patroni          []string      // URLs of Patroni's REST API; its members join the servers
	SystemIdentifier string        // of the cluster that the servers must belong to; "" is found out
	SwitchoverDrain  time.Duration // a switchover waits so long for open transactions
	TrackCommits     bool          // a commit whose server dies is looked up
}

// Rule sends statements to a target. Each of its conditions that is given must
// fit.
type Rule struct {
	User            string         // the client's name; "" is any
	ApplicationName string         // with * for any text and ? for one character; "" is any
	ClientAddr      netip.Prefix   // not valid is any
	Match           *regexp.Regexp // found anywhere in the statement's shape; nil is any
	Target          string         // primary, replica or a group of servers
}

// HasGroup reports whether a server belongs to the group.
func (d *Database) HasGroup(name string) bool {
	return slices.ContainsFunc(d.Servers, func(s Server) bool { return slices.Contains(s.Groups, name) })
}

// OneDatabase reports whether all clients of the entry are in the database DBName.
func (d *Database) OneDatabase() bool { return !d.anyDBName }

// Server is one PostgreSQL server of a Database.
type Server struct {
	Host   string // name, address or the folder of a Unix socket: from "/", or an abstract name from "@"
	Port   int
	Role   ServerRole
	Weight int      // share of the reads, 1 to 1000
	Groups []string // names by which hints and rules may ask for it
}

// Network is what to give to net.Dial together with Addr: "tcp" or "unix".
func (s Server) Network() string {
	if strings.HasPrefix(s.Host, "/") || strings.HasPrefix(s.Host, "@") {
		return "unix"
	}
	return "tcp"
}

// Addr is "host:port", or the path of the Unix socket.
func (s Server) Addr() string {
	port := strconv.Itoa(s.Port)
	if s.Network() == "unix" {
		return filepath.Join(s.Host, ".s.PGSQL."+port)
	}
	return net.JoinHostPort(s.Host, port)
}

// Several reports whether the database may have more than one server.
func (d *Database) Several() bool { return len(d.Servers) > 1 || len(d.Patroni) > 0 }

// ServerAt is the server that has this Addr, with nothing else known of it.
func ServerAt(addr string) Server {
	s := defaultServer()
	if dir, port, ok := strings.Cut(addr, "/.s.PGSQL."); ok {
		s.Host = dir
		s.Port, _ = strconv.Atoi(port)
		return s
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return s
	}
	s.Host = host
	s.Port, _ = strconv.Atoi(port)
	return s
}

// User is one [users.NAME]: exceptions for one user. Zero inherits.
type User struct {
	Name               string
	Passwords          []Secret // besides those of auth_file, the newest first
	PoolSize           int
	PoolMode           PoolMode
	ReservePoolSize    int
	MaxUserConnections int
	Consistency        Consistency

	MaxUserClientConnections int

	// Limits on clients.
	ClientIdleTimeout, IdleTransactionTimeout, TransactionTimeout, QueryTimeout, QueryWaitTimeout time.Duration
}

// Peer is one [peers.ID]: a process that listens on the same address as this
// one.
type Peer struct {
	ID       int
	Host     string
	Port     int
	PoolSize int // cancel requests that are on their way to it at once; 0 is DefaultPoolSize
}

// INI tells whether the configuration was read from a pgbouncer.ini.
func (c *Config) INI() bool { return c.source != nil && c.source.ini }

// Wildcard is the name of the database entry for all names without their own.
const Wildcard = "*"

// Database finds the entry for a name that a client asks for: its own, or "*"
// with DBName set to the name, unless that entry fixes a dbname. What is made
// from "*" is a new value that is not remembered, so that names which nobody has
// proved a right to cost nothing; its Name stays "*".
func (c *Config) Database(name string) (*Database, bool) {
	if name == Wildcard {
		return nil, false // no name that a client may ask for
	}
	if db, ok := c.Databases[name]; ok {
		return db, true
	}
	wild, ok := c.Databases[Wildcard]
	if !ok {
		return nil, false
	}
	if !wild.anyDBName && wild.DBName != "" {
		return wild, true
	}
	db := *wild
	db.DBName, db.anyDBName = name, false
	return &db, true
}
