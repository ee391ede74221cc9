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
	Warnings  []string             // risky but accepted, one line each: "FILE:LINE: KEY: TEXT"
}

// Proxy is the section [proxy]: what concerns the process, and what databases and
// users inherit. A duration, size or limit of 0 means "none" unless it says
// otherwise.
type Proxy struct {
	// Listening; a change needs a restart.
	ListenAddr    []string // addresses of the TCP listeners; "*" is all interfaces
	ListenPort    int      // TCP port and part of the socket's file name; 0 is any free port
	UnixSocketDir string   // folder of the Unix socket; "" is none
	HTTPListen    string   // HOST:PORT of metrics and health; "" is none

	// Login.
	AuthType                AuthType
	AuthFile                string   // absolute, or relative to the working directory, as the file's path was
	AdminUsers              []string // may use the whole console
	StatsUsers              []string // may use SHOW on the console
	ClientLoginTimeout      time.Duration
	IgnoreStartupParameters []string // startup parameters that are accepted and dropped

	// Pools.
	PoolMode           PoolMode
	DefaultPoolSize    int // server connections for each database, user and server
	MinPoolSize        int // server connections that are kept open
	MaxClientConn      int // clients of the process
	MaxDBConnections   int // server connections of one database to one server, over all pools
	MaxUserConnections int // server connections of one user to one server, over all pools
	QueryWaitTimeout   time.Duration

	// Server connections.
	ServerIdleTimeout     time.Duration
	ServerLifetime        time.Duration
	ServerCheckDelay      time.Duration // idle time after which a connection is checked before it is lent
	ServerCheckQuery      string        // "" is the empty query, CheckQueryOff is never
	ServerConnectTimeout  time.Duration // connect and login
	ServerLoginRetry      time.Duration // pause of a pool after a failed login
	ServerResetQuery      string        // "" is none
	MaxPreparedStatements int           // on each server connection; 0 is no limit

	// Health of servers.
	ServerCheckInterval time.Duration // between two checks of role and lag
	LSNInterval         time.Duration // between two samples of the primary's WAL position
	MonitorUser         string        // logs in for the checks where a database has no login of its own
	MonitorPassword     Secret

	// Limits on clients.
	ClientIdleTimeout      time.Duration
	IdleTransactionTimeout time.Duration
	QueryTimeout           time.Duration
	CancelWaitTimeout      time.Duration // a cancel request waits so long to reach its server
	ShutdownTimeout        time.Duration // a drain is cut after this time
	MaxPacketSize          int64         // bytes of one message
	MaxQueryParseSize      int           // bytes; a longer statement is not parsed and goes to the primary

	// TCP, in the units of the kernel's options.
	TCPKeepalive   bool
	TCPKeepIdle    time.Duration // 0 is the system's
	TCPKeepIntvl   time.Duration // 0 is the system's
	TCPUserTimeout time.Duration // on server connections; 0 is the system's

	// Logs and statistics.
	LogConnections         bool
	LogDisconnections      bool
	LogPoolerErrors        bool
	LogLevel               string // debug, info, warn or error
	StatsPeriod            time.Duration
	ApplicationNameAddHost bool
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

	// Pools.
	PoolMode         PoolMode // never PoolInherit
	PoolSize         int
	MinPoolSize      int
	MaxDBConnections int // 0 is no limit
	QueryWaitTimeout time.Duration

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
	FailoverTimeout    time.Duration // a transaction waits so long for a primary
	Rules              []Rule        // the first that fits decides
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

// Server is one PostgreSQL server of a Database.
type Server struct {
	Host   string // name, address or, from "/", the folder of a Unix socket
	Port   int
	Role   ServerRole
	Weight int      // share of the reads, 1 to 1000
	Groups []string // names by which hints and rules may ask for it
}

// Network is what to give to net.Dial together with Addr: "tcp" or "unix".
func (s Server) Network() string {
	if strings.HasPrefix(s.Host, "/") {
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

// User is one [users.NAME]: exceptions for one user. Zero inherits.
type User struct {
	Name               string
	PoolSize           int
	PoolMode           PoolMode
	MaxUserConnections int
	Consistency        Consistency
}

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
