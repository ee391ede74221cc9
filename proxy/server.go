package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/auth"
	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/pool"
	"pgproxy/router"
)

// Topologies tells which servers are up and what they are. Package monitor has
// the real one.
type Topologies interface {
	// Topology returns the current picture of a database, by the name of its
	// entry in the configuration; nil if there is no such entry.
	Topology(database string) *router.Topology
	// Wait returns when the picture is newer than the given generation.
	Wait(ctx context.Context, database string, than uint64) error
	// Suspect is told that a server connection broke.
	Suspect(database, addr string)
	// Want is told that a read must see on a replica what could be seen on the
	// primary at this moment, and that no replica is known to show it.
	Want(database string, stamp int64)
}

// Console serves the admin database to a client that has logged in. Package
// admin has the real one.
type Console interface {
	// Serve returns when the client is done. It must stop when ctx ends.
	Serve(ctx context.Context, c ConsoleClient) error
}

// ConsoleClient is what a Console gets: the connection behind AuthenticationOk.
type ConsoleClient struct {
	Conn     net.Conn
	Identity auth.Identity
	Database string // pgproxy or pgbouncer
	PID      uint32
	Secret   []byte
	Session  uint64
}

// ConsoleNames are the databases that are the console.
var ConsoleNames = []string{"pgproxy", "pgbouncer"}

// Settings is one configuration with all that is built from it.
type Settings struct {
	Config *config.Config
	Auth   *auth.Authenticator
	Users  *auth.Userlist
	TLS    *tls.Config // with clients; nil: none. See config.TLS.ForClients
}

// Options for a Server. All but Trace must be given.
type Options struct {
	Log        *slog.Logger
	Pools      *pool.Set
	Router     *router.Router
	Topologies Topologies
	Trace      *Trace
}

// Trace is told of moments that metrics are made of. A nil func costs a branch.
type Trace struct {
	Login func(ok bool)
}

// Server accepts clients.
type Server struct {
	// Set at construction.
	log      *slog.Logger
	pools    *pool.Set
	router   *router.Router
	topo     Topologies
	trace    Trace
	registry *registry // prepared statements by text
	welcomes welcomes  // what a login reports, by settings
	interned interned  // settings of logins
	ctx      context.Context
	stop     context.CancelFunc
	peerID   uint32         // peer_id, which does not change
	peers    sync.Map       // of *peerLine by peer_id
	catalogs sync.Map       // of *atomic.Uint64 by dbname, see catalogOf
	goes     sync.WaitGroup // accept loops, sessions, the sweeper

	console  atomic.Pointer[Console]
	kin      atomic.Pointer[func(ctx context.Context, pid uint32, secret []byte) bool]
	current  atomic.Pointer[Settings]
	routes   routes
	shadow   shadow
	ledger   ledger // stamps of the last acknowledged writes
	asker    *asker
	guessing *auth.Limiter // failed logins
	failed   loginLog
	entrance *entrance

	// Atomic, for observers.
	draining atomic.Bool
	nextID   atomic.Uint64
	changes  atomic.Uint64 // numbers of Parses and Closes of all clients, see nameChange
	clients  atomic.Int64
	entering atomic.Int64 // of them, those that log in
	asking   atomic.Int64 // of them, those whose first packet has not come yet
	replicas atomic.Int64 // replication connections, up or about to be
	logins   atomic.Uint64
	refused  atomic.Uint64
	limited  atomic.Uint64
	panics   atomic.Uint64
	reruns   [backend.CauseCanceled + 1]atomic.Uint64 // statements that were run again, by cause
	healed   atomic.Uint64                            // shapes that a standby has refused

	// Guarded by mu.
	mu        sync.RWMutex
	sessions  map[uint32]*Session
	listeners []Socket
	disabled  map[string]bool
	refusing  bool // the Unix sockets take cancel requests only
	closed    bool

	byDatabase, byUser counts // clients that have logged in

	listening sync.Mutex              // taken before any listener's
	ears      map[listenKey]*listener // guarded by listening
}

// New makes a Server. Listen starts it, Close ends it.
func New(st *Settings, opt Options) *Server {
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{
		log: opt.Log, pools: opt.Pools, router: opt.Router, topo: opt.Topologies, registry: newRegistry(),
		ctx: ctx, stop: stop, sessions: make(map[uint32]*Session), disabled: make(map[string]bool),
		byDatabase: make(counts), byUser: make(counts), peerID: uint32(st.Config.Proxy.PeerID),
	}
	if opt.Trace != nil {
		s.trace = *opt.Trace
	}
	s.entrance = newEntrance()
	s.asker, s.guessing = newAsker(s), auth.NewLimiter(router.Nanotime)
	s.shadow.guests = s.pools.Guests(s.shadow.yield)
	s.current.Store(st)
	s.registry.setLimit(st.Config.Proxy.PreparedStatementMemory)
	s.goes.Add(1)
	go s.sweep()
	return s
}

// SetConsole supplies the admin console; before that its databases do not exist.
func (s *Server) SetConsole(c Console) { s.console.Store(&c) }

// Apply takes over a new configuration. Transactions that are under way end with
// the old one. Idle clients of databases that are no more are cut.
func (s *Server) Apply(st *Settings) {
	s.current.Store(st)
	s.registry.setLimit(st.Config.Proxy.PreparedStatementMemory)
	s.welcomes.clear()
	s.asker.tidy(true)
	for _, ses := range s.list() {
		if ses.welcomed.Load() && !ses.busy() {
			if _, ok := st.Config.Database(ses.database); !ok {
				ses.end(errNoDatabase(ses.database))
			}
		}
	}
}

// Settings returns the configuration in force.
func (s *Server) Settings() *Settings { return s.current.Load() }

// Addrs returns the addresses that are listened on.
func (s *Server) Addrs() []net.Addr {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []net.Addr
	for _, l := range s.listeners {
		out = append(out, l.Addr())
	}
	return out
}

// accept serves one listener until it is closed. Errors that pass (no file
// descriptors left) are waited out, longer each time.
func (s *Server) accept(l net.Listener) {
	defer s.goes.Done()
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Error("accept failed", "error", err, "retry_in", pause)
			select {
			case <-time.After(pause):
				continue
			case <-s.ctx.Done():
				return
			}
		}
		pause = 0
		s.Serve(nc)
		s.pace()
	}
}

// Serve takes over a client connection. It returns at once.
func (s *Server) Serve(nc net.Conn) {
	ses := newSession(s, nc)
	s.mu.Lock()
	ses.late = s.refusing && nc.LocalAddr().Network() == "unix"
	if s.closed || s.peerID != 0 && len(s.sessions) >= maxSessions || len(s.sessions) >= crowd(s.current.Load().Config.Proxy.MaxClientConn) {
		s.mu.Unlock()
		s.refused.Add(1)
		_ = nc.Close()
		return
	}
	for { // a random process id, so that an old one is not soon used again
		ses.pid = s.newPID()
		if _, taken := s.sessions[ses.pid]; !taken {
			break
		}
	}
	s.sessions[ses.pid] = ses
	s.goes.Add(1)
	s.mu.Unlock()
	s.clients.Add(1)
	s.asking.Add(1)
	s.entering.Add(1)
	go ses.run()
}

// crowd is how many connections are held open at once: beyond max_client_conn there
// is room for cancel requests, for those who are told that it is full, and for those
// who have not said yet what they want.
func crowd(maxClients int) int { return maxClients + maxClients/10 + 100 }

// spawn runs f in a goroutine that Close waits for; after Close it does nothing.
func (s *Server) spawn(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.goes.Add(1)
	go func() {
		defer s.goes.Done()
		f()
	}()
}

// forget takes a session out of the registry, as its last act.
func (s *Server) forget(ses *Session) {
	s.mu.Lock()
	delete(s.sessions, ses.pid)
	if ses.admitted {
		s.byDatabase.add(ses.database, -1)
		s.byUser.add(ses.user, -1)
	}
	s.mu.Unlock()
	s.clients.Add(-1)
	s.goes.Done()
}

// list returns all sessions in order of their number.
func (s *Server) list() []*Session {
	s.mu.RLock()
	l := make([]*Session, 0, len(s.sessions))
	for _, ses := range s.sessions {
		l = append(l, ses)
	}
	s.mu.RUnlock()
	slices.SortFunc(l, func(a, b *Session) int { return int(int64(a.id) - int64(b.id)) })
	return l
}

// SetDisabled makes a database refuse new clients, or accept them again.
func (s *Server) SetDisabled(database string, off bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if off {
		s.disabled[database] = true
	} else {
		delete(s.disabled, database)
	}
}

// Disabled reports whether a database refuses new clients.
func (s *Server) Disabled(database string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.disabled[database]
}

// Draining reports whether the server is on its way out.
func (s *Server) Draining() bool { return s.draining.Load() }
