package proxy

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/auth"
	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/netio"
	"pgproxy/pool"
	"pgproxy/router"
	"pgproxy/wire"
)

// Session is one client, from accept to goodbye. Thousands of them are idle: it is to
// be no longer than 1,280 bytes, which is a size class of Go's heap.
type Session struct {
	// Set at construction.
	srv   *Server
	id    uint64
	pid   uint32   // ours, in the cancel key
	nc    net.Conn // the socket
	since time.Time
	// Of the configuration that was in force when the client came; nil: no TLS.
	tlsConfig *tls.Config

	// Set before the session is welcomed, constant after.
	link     net.Conn // nc, or TLS over it
	io       *netio.Conn
	secret   []byte
	user     string // who the client is
	database string // as the client asked for
	identity auth.Identity
	heldMax  int               // longest message in bytes that io can hold
	base     *backend.Settings // from the startup packet
	admitted bool              // counted among the clients of its database and user; guarded by srv.mu
	late     bool              // came when the server took no clients any more
	welcomed atomic.Bool

	// Owned by the session's goroutine.
	lease         *backend.Conn // may have been detached: ask Hold
	leaseRole     router.Role
	readTx        bool         // the lease began with BEGIN READ ONLY on a replica
	open          bool         // extended-protocol messages were sent whose Sync was not
	skipping      bool         // after a local error: ignore everything up to Sync
	drop          bool         // drop the bytes that rest counts
	began         bool         // begun was sent in the batch, or in front of the query, at hand
	forged        bool         // the last reply that is owed is one that the proxy makes
	barrierAlone  bool         // nothing else is in the batch of barrier
	shadowing     bool         // the lease was lent for a read that may be compared
	dropping      bool         // the next Execute takes all names of statements, and more follows in its batch
	listensThere  bool         // a lease was made to listen itself, and was pinned
	triedBegin    bool         // what tried tells of is a BEGIN alone
	rest          int          // bytes left of a message that is relayed (or dropped) in parts
	begun         *begun       // a BEGIN that no server has heard of yet
	barrier       *router.Plan // act on it when the statement is complete
	barrierErrors uint64       // ErrorResponses of the lease before that statement
	barrierChange uint64       // changes of names up to this number come before it
	binds         int          // Binds of the open batch so far
	route         Route        // of the last statement
	params        own          // pgproxy.*
	block         block
	rules         clientRules
	sight         sight  // what its reads have shown
	system        string // of the topology that writes were counted for, see count
	cfg           *config.Config
	db            *config.Database // entry of cfg
	mode          config.PoolMode
	pools         []*pool.Pool // by index of the topology's servers, as far as asked for
	prover        *router.Prover
	path          *router.Path      // what unqualified names mean; made for
	pathFor       *backend.Settings // these
	stmts         map[string]*statement
	changes       []nameChange // not known yet whether they have happened
	batches       uint64       // counts Syncs
	unnamed       unnamedStatement
	signal        backend.Signal            // of the open batch's statements
	told          map[string]*atomic.Uint64 // what the client knows of the rows of its statements, see describe
	next          *backend.Owed             // of the next Execute: what it does with a prepared statement; nil: nothing
	wroteOn       *backend.Conn             // where the last statement that may have called nextval ran
	unit          unit                      // the statement that is being sent
	pending       tracked                   // the COMMIT that was sent last, with track_commits
	tried         uint64                    // the batch of the last one that may be run again, see also triedBegin
	triedBegun    *begun                    // and the BEGIN in front of it
	detour        detour                    // where it must go, or must not, when it is run again
	catalog       *atomic.Uint64            // of the database, see Server.catalogOf
	alone         uint64                    // not 0: what it prepares on this lease is nobody else's, see edition
	analysed      string                    // of analysedFor, see edition
	analysedFor   *backend.Settings
	waiter        pool.Waiter
	loginEncoding string // client_encoding of a fresh login

	// Held while writing to the client.
	wmu  sync.Mutex
	werr error

	// Guarded by mu.
	mu         sync.Mutex
	ended      error    // why the session must end
	cancelWait func()   // ends a wait for a server
	undone     []uint64 // changes that have not happened
	failed     *backend.Failure

	// Atomic, for observers and the server connection.
	origin     atomic.Pointer[origin] // never nil
	tap        atomic.Pointer[tap]    // hears what the client is written
	hasUndone  atomic.Bool
	sentAway   atomic.Bool                      // see sendAway
	settings   atomic.Pointer[backend.Settings] // wanted now
	current    atomic.Pointer[backend.Conn]     // last lease; it knows whether it still is one
	answered   atomic.Int64                     // stamp of the last ReadyForQuery
	lastWrite  atomic.Int64                     // stamp of the session's last acknowledged write
	mine       atomic.Pointer[atomic.Int64]     // stamp of the last write that counts as its own
	writes     atomic.Pointer[[]*atomic.Int64]  // those of the database, see Server.writesOf
	cancelling atomic.Bool
	inBlock    atomic.Bool  // begun is set
	failing    atomic.Bool  // a statement has failed that is to be run again
	canceled   atomic.Bool  // the client has asked for a cancel meanwhile
	ending     atomic.Bool  // ended is set
	waiting    atomic.Int64 // since when, Nanotime; 0 is not waiting
	lastSeen   atomic.Int64 // when the client last sent something, Nanotime
	noticed    atomic.Int64 // lastSeen of the wait that the client was told of
	prepared   atomic.Int64
	ddl        atomic.Pointer[altered]     // to be told when the open transaction has ended; nil: it changes no catalog
	replica    atomic.Pointer[replication] // nil for ordinary clients
	ears       atomic.Pointer[ears]        // nil before the first LISTEN
	wrote      atomic.Bool                 // with ears: since they last heard of all that was committed
}

// unnamedStatement is the client's unnamed prepared statement, kept so that it
// can be prepared again on another server connection.
type unnamedStatement struct {
	id          uint64 // number of its Parse, as in nameChange; 0: there is none
	query, oids []byte
	plan        *router.Plan // by the text alone
}

// drop forgets the statement, but not what is known of its text.
func (u *unnamedStatement) drop() { u.id = 0 }

// planFor returns the plan if text is that of the last unnamed statement: drivers
// that use no names send the same one again and again.
func (u *unnamedStatement) planFor(text []byte) *router.Plan {
	if u.plan != nil && u.query != nil && bytes.Equal(u.query, text) {
		return u.plan
	}
	return nil
}

// Route tells where a statement went, and why.
type Route struct {
	Server string
	Role   router.Role
	Reason router.Reason
	Plan   *router.Plan
}

// String is what SHOW pgproxy.route says.
func (r Route) String() string {
	if r.Plan == nil {
		return "no statement has been routed yet"
	}
	return fmt.Sprintf("%s %s: %s (%s)", r.Role, r.Server, r.Reason, r.Plan.Reason)
}

func newSession(srv *Server, nc net.Conn) *Session {
	s := &Session{srv: srv, id: srv.nextID.Add(1), nc: nc, link: nc, since: time.Now(), tlsConfig: srv.current.Load().TLS}
	s.origin.Store(&origin{nc.RemoteAddr(), nc.LocalAddr()})
	return s
}

// lowestPID is above all process numbers that Linux gives (PID_MAX_LIMIT): a
// client's is never that of a server process.
const lowestPID = 1<<22 + 1

// random fills b; it never fails, see crypto/rand.
func random(b []byte) { _, _ = rand.Read(b) }

func randomPID() uint32 {
	var b [4]byte
	random(b[:])
	return lowestPID + binary.BigEndian.Uint32(b[:])%(1<<31-lowestPID)
}

// errTerminate ends a session whose client has said goodbye.
var errTerminate = errors.New("client said goodbye")

// errConsole ends the ordinary session: the console has served the client.
var errConsole = errors.New("console session ended")

// run is the session's goroutine until the client has logged in, started by
// Server.Serve. One with a fresh stack takes over then: what the login has grown
// is not to live as long as the client. Server.Close waits for both.
func (s *Session) run() {
	if err := s.guarded(s.login); err != nil {
		s.finish(err)
		return
	}
	go func() { s.finish(s.guarded(s.relay)) }()
}

// finish is a session's last act.
func (s *Session) finish(err error) {
	defer s.srv.forget(s)
	s.close(err)
}

// guarded runs f and turns a panic into an error: it may cost this client its
// connection, but nobody else's.
func (s *Session) guarded(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			s.srv.panics.Add(1)
			s.log().Error("panic", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = wire.Fatalf(wire.CodeInternal, "internal error of the proxy")
		}
	}()
	return f()
}

// apart runs f on another goroutine's stack and waits for its end. What is deep and
// rare goes there: a stack that has grown for it once is as large while the client is
// idle.
func (s *Session) apart(f func() error) (err error) {
	if !s.welcomed.Load() {
		return f() // the stack of a login goes with it
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = s.guarded(f)
	}()
	<-done
	return err
}

func (s *Session) relay() error { return s.io.Loop(s.onClient) }

// log returns a logger that names the session. It is made when it is needed.
func (s *Session) log() *slog.Logger {
	return s.srv.log.With("session", s.id, "client", s.origin.Load().remote.String(), "user", s.user, "database", s.database)
}

// logLogin is log().Info for the one line that each session writes, without a logger of
// its own for that, which would take a kilobyte.
func (s *Session) logLogin(application string) {
	s.srv.log.Info("client connected", "session", s.id, "client", s.origin.Load().remote.String(), "user", s.user,
		"database", s.database, "application_name", application)
}

// goodbyeTimeout is how long a client that is to leave may take to read.
const goodbyeTimeout = time.Second

// end makes the session end, with the first reason that is given. Anybody may
// call it.
func (s *Session) end(reason error) {
	s.mu.Lock()
	if s.ended == nil {
		s.ended = reason
	}
	s.ending.Store(true)
	if s.cancelWait != nil {
		s.cancelWait()
	}
	s.mu.Unlock()
	s.waiter.Cancel(reason)
	if r := s.replica.Load(); r != nil && r.stream.Load() != nil {
		_ = s.nc.SetWriteDeadline(time.Now().Add(goodbyeTimeout))
		r.end()
	} else if s.welcomed.Load() {
		// Its goroutine may be reading, writing to a client that does not read, or
		// waiting for a server.
		s.io.Wake()
		_ = s.nc.SetWriteDeadline(time.Now().Add(goodbyeTimeout))
		if c := s.current.Load(); c != nil {
			c.Forsake(s)
		}
	} else {
		// It may have begun to say goodbye already: that it may go on with.
		_ = s.nc.SetReadDeadline(time.Unix(1, 0))
		_ = s.nc.SetWriteDeadline(time.Now().Add(goodbyeTimeout))
	}
}

// loggedIn reports whether the client has got to ReadyForQuery, of an ordinary
// session or of replication.
func (s *Session) loggedIn() bool {
	r := s.replica.Load()
	return s.welcomed.Load() || r != nil && r.stream.Load() != nil
}

// endReason returns what end was told.
func (s *Session) endReason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// close tells the client why, as far as there is something to tell, gives back
// what the session holds, and logs its end.
func (s *Session) close(err error) {
	if ended := s.endReason(); ended != nil {
		err = ended
	}
	s.fail(err)
	_ = s.nc.Close()
	if c := s.lease; c != nil {
		reset := "DISCARD ALL" // what has pinned the connection is nobody else's, whatever the file says
		if s.sessionMode() {
			reset = s.srv.current.Load().Config.Proxy.ServerResetQuery
		}
		c.Abandon(s, reset)
	}
	if e := s.ears.Load(); e != nil {
		e.close()
	}
	s.dropStatements(math.MaxUint64)
	s.logEnd(err)
}

// fail is the one place that turns the error that ends a session into bytes.
func (s *Session) fail(err error) {
	var e *wire.Error
	var lost *lostServer
	switch {
	case errors.As(err, &lost):
		e = lost.tell
	case errors.As(err, &e):
	}
	if e == nil {
		return
	}
	out := *e
	out.Severity = wire.SeverityFatal
	// A client that does not read must not hold up its own end: the bound comes
	// before the lock, since the server connection's goroutine may be writing.
	_ = s.nc.SetWriteDeadline(time.Now().Add(goodbyeTimeout))
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if c := s.lease; s.werr != nil || c != nil && (c.Halfway(s) || c.HadLastWords(s)) {
		return // in the middle of a row it would be taken for a part of it
	}
	p := out.Append(nil)
	if s.io != nil {
		s.werr = s.io.Write(p)
	} else {
		_, s.werr = s.link.Write(p)
	}
	if s.werr == nil {
		s.closeWrite()
	}
}

// logEnd writes the session's last line.
func (s *Session) logEnd(err error) {
	p := s.srv.current.Load().Config.Proxy
	var e *wire.Error
	switch {
	case !s.loggedIn() && !errors.Is(err, errTerminate) && !errors.Is(err, errConsole) && !errors.As(err, &e):
		// A health check, a port scan, a client that gave up.
		if log := s.log(); log.Enabled(s.srv.ctx, slog.LevelDebug) && s.srv.failed.allow() {
			log.Debug("client left before it was logged in", "reason", reason(err))
		}
	case errors.Is(err, errTerminate), errors.Is(err, errConsole), errors.Is(err, io.EOF):
		if p.LogDisconnections && s.loggedIn() {
			s.log().Info("client disconnected", "reason", reason(err), "age", time.Since(s.since).Round(time.Millisecond))
		}
	case p.LogPoolerErrors && (s.loggedIn() || s.srv.failed.allow()):
		s.log().Warn("client connection closed", "error", err, "age", time.Since(s.since).Round(time.Millisecond))
	}
}

func reason(err error) string {
	switch {
	case errors.Is(err, errTerminate), errors.Is(err, errConsole):
		return "client close request"
	case errors.Is(err, io.EOF):
		return "client unexpected eof"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	}
	return err.Error()
}

// writeLocal writes to the client what the proxy says itself. Nothing may be
// owed to the client.
func (s *Session) writeLocal(p []byte) error {
	if s.lease != nil && s.lease.HadLastWords(s) {
		return &lostServer{err: backend.ErrGone}
	}
	s.wmu.Lock()
	defer s.wmu.Unlock()
	return s.Reply(p)
}
