package pool_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/pool"
	"pgproxy/wire"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a Set and the server behind it, all in memory and in one bubble.
type world struct {
	t   *testing.T
	set *pool.Set
	cfg *config.Config

	mu       sync.Mutex
	open     int // server connections now
	most     int // and at most
	opened   int
	byDB     map[string]int
	mostByDB map[string]int
	refuse   func(n int) error // of the nth login, from 1; nil accepts
	gate     chan struct{}     // logins wait for it, if not nil
	silent   bool              // queries are not answered
	turns    chan struct{}     // answers wait for it, if not nil
	secret   string            // asked for at logins, if not ""
	suspects int
	linger   time.Duration // of the server behind a Terminate
	alive    int           // server processes
	crowd    int           // and at most
}

// inBubble runs a story: in a bubble, with a check for what it leaves.
func inBubble(t *testing.T, story func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		story(w)
		w.end()
	})
}

var server = config.Server{Host: "memory", Port: 5432}

func newWorld(t *testing.T) *world {
	w := &world{t: t, byDB: make(map[string]int), mostByDB: make(map[string]int)}
	w.cfg = w.config(func(*config.Config) {})
	start := time.Now()
	w.set = pool.New(w.cfg, pool.Options{
		Log: slog.New(slog.DiscardHandler),
		Now: func() int64 { return int64(time.Since(start)) },
		Dial: func(*config.Config, *config.Database) *backend.Dialer {
			return &backend.Dialer{
				Limits: backend.Limits{CancelWait: time.Second}, ConnectTimeout: 10 * time.Second,
				Now: func() int64 { return int64(time.Since(start)) }, Connect: w.connect,
			}
		},
		Suspect: func(string, string) { w.mu.Lock(); w.suspects++; w.mu.Unlock() },
	})
	return w
}

// config makes a configuration of databases a and b with pools of two.
func (w *world) config(change func(*config.Config)) *config.Config {
	cfg := &config.Config{
		Proxy: config.Proxy{
			ServerLoginRetry: 5 * time.Second, ServerCheckQuery: config.CheckQueryOff, ServerConnectTimeout: 10 * time.Second,
		},
		Databases: make(map[string]*config.Database), Users: make(map[string]*config.User),
	}
	for _, name := range []string{"a", "b"} {
		cfg.Databases[name] = &config.Database{
			Name: name, DBName: name, Servers: []config.Server{server}, PoolMode: config.PoolTransaction,
			PoolSize: 2, QueryWaitTimeout: 2 * time.Minute,
		}
	}
	change(cfg)
	return cfg
}

// apply gives the Set a changed configuration.
func (w *world) apply(change func(*config.Config)) {
	w.cfg = w.config(change)
	w.set.Apply(w.cfg)
}

func (w *world) pool(database, user string) *pool.Pool { return w.login(database, user, "") }

// login is pool for a user with a password.
func (w *world) login(database, user string, password config.Secret) *pool.Pool {
	db, _ := w.cfg.Database(database)
	return w.set.Get(database, db, server, user, password)
}

// end closes the Set and checks that nothing is left. The bubble itself fails if
// a goroutine is.
func (w *world) end() {
	w.t.Helper()
	synctest.Wait()
	w.check()
	if err := w.set.Close(context.Background()); err != nil {
		w.t.Errorf("close: %v", err)
	}
	synctest.Wait()
	w.check()
	if n := w.now(); n != 0 {
		w.t.Errorf("%d server connections are still open", n)
	}
}

func (w *world) check() {
	w.t.Helper()
	if err := w.set.ConsistencyCheck(); err != nil {
		w.t.Error(err)
	}
}

// connect is the dialer's Connect: one end of a pipe whose other end logs in.
func (w *world) connect(ctx context.Context, network, _ string) (net.Conn, error) {
	if network == "pipe" {
		return nil, errors.New("no cancel requests here")
	}
	w.mu.Lock()
	w.opened++
	n, gate, refuse := w.opened, w.gate, w.refuse
	w.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var refusal *wire.Error
	if refuse != nil {
		if err := refuse(n); err != nil && !errors.As(err, &refusal) {
			return nil, err
		}
	}
	ours, theirs := net.Pipe()
	e := &end{Conn: ours, w: w}
	go w.serve(e, theirs, uint32(n), refusal)
	return e, nil
}

// end is the proxy's end of a connection, which counts from its login until the
// proxy closes it.
type end struct {
	net.Conn
	w      *world
	db     string // guarded by w.mu
	closed bool   // guarded by w.mu
}

func (e *end) Close() error {
	e.w.with(func() {
		if !e.closed && e.db != "" {
			e.w.countLocked(e.db, -1)
		}
		e.closed = true
	})
	return e.Conn.Close()
}

func (e *end) login(db string) {
	e.w.with(func() {
		if e.db = db; !e.closed {
			e.w.countLocked(db, 1)
		}
	})
}

// serve is the server's end: it logs in, then answers each query.
func (w *world) serve(e *end, nc net.Conn, pid uint32, refusal *wire.Error) {
	defer nc.Close()
	head := make([]byte, 4)
	if _, err := io.ReadFull(nc, head); err != nil {
		return
	}
	n, err := wire.StartupLen(head)
	if err != nil {
		return
	}
	packet := append(head, make([]byte, n-4)...)
	if _, err := io.ReadFull(nc, packet[4:]); err != nil {
		return
	}
	st, err := wire.ReadStartup(packet)
	if err != nil {
		return
	}
	if refusal != nil {
		_, _ = nc.Write(refusal.Append(nil))
		return
	}
	if !w.admits(nc) {
		_, _ = nc.Write(errPassword.Append(nil))
		return
	}
	e.login(st.Param("database"))
	w.with(func() { w.alive++; w.crowd = max(w.crowd, w.alive) })
	defer w.with(func() { w.alive-- })
	b := wire.AppendAuth(nil, wire.AuthOK, nil)
	b = wire.AppendParameterStatus(b, "server_version", "15.0")
	b = wire.AppendBackendKeyData(b, pid, []byte{1, 2, 3, 4})
	if _, err := nc.Write(wire.AppendReadyForQuery(b, wire.TxIdle)); err != nil {
		return
	}
	for {
		var h [wire.HeaderLen]byte
		if _, err := io.ReadFull(nc, h[:]); err != nil {
			return
		}
		hd, err := wire.ReadHeader(h[:], 1<<20)
		if err != nil {
			return
		}
		if hd.Type == wire.Terminate {
			var linger time.Duration
			w.with(func() { linger = w.linger })
			<-time.After(linger)
			return
		}
		if _, err := io.CopyN(io.Discard, nc, int64(hd.Body)); err != nil {
			return
		}
		w.mu.Lock()
		silent, turns := w.silent, w.turns
		w.mu.Unlock()
		b := wire.AppendReadyForQuery(wire.AppendCommandComplete(nil, "SELECT 0"), wire.TxIdle)
		switch {
		case hd.Type != wire.Query || silent:
		case turns != nil:
			go func() { // ends with the turn; whose it is makes no difference
				<-turns
				_, _ = nc.Write(b)
			}()
		default:
			if _, err := nc.Write(b); err != nil {
				return
			}
		}
	}
}

// admits asks for the password, if there is one.
func (w *world) admits(nc net.Conn) bool {
	var want string
	w.with(func() { want = w.secret })
	if want == "" {
		return true
	}
	if _, err := nc.Write(wire.AppendAuth(nil, wire.AuthCleartextPassword, nil)); err != nil {
		return false
	}
	var h [wire.HeaderLen]byte
	if _, err := io.ReadFull(nc, h[:]); err != nil {
		return false
	}
	hd, err := wire.ReadHeader(h[:], 1<<10)
	if err != nil {
		return false
	}
	b := make([]byte, hd.Body)
	_, err = io.ReadFull(nc, b)
	return err == nil && string(b) == want+"\x00"
}

func (w *world) countLocked(db string, n int) {
	w.open += n
	w.byDB[db] += n
	w.most = max(w.most, w.open)
	w.mostByDB[db] = max(w.mostByDB[db], w.byDB[db])
}

// now and total return how many connections are open, and have been opened.
func (w *world) now() (n int)   { w.with(func() { n = w.open }); return n }
func (w *world) total() (n int) { w.with(func() { n = w.opened }); return n }

// with looks at or changes fields under the mutex.
func (w *world) with(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// client is a Sink that remembers only that it was lost.
type client struct {
	backend.Sink // what is not of interest here, and not called
	mu           sync.Mutex
	w            pool.Waiter
	conn         *backend.Conn
	err          error
	done         chan struct{} // closed when acquire has returned
	lost         chan error
	stuck        chan struct{} // replies wait for it, if not nil
}

func newClient() *client {
	return &client{done: make(chan struct{}), lost: make(chan error, 2)}
}

func (c *client) Lock()                         { c.mu.Lock() }
func (c *client) Unlock()                       { c.mu.Unlock() }
func (c *client) Reported(string, string, bool) {}
func (c *client) Answered(int64, bool)          {}
func (c *client) Lost(err error, _ bool)        { c.lost <- err }

func (c *client) Reply([]byte) error {
	if c.stuck != nil {
		<-c.stuck
	}
	return nil
}

// acquire asks for a connection in a goroutine of its own, which ends with it.
func acquire(p *pool.Pool) *client {
	c := newClient()
	acquireFor(p, c)
	return c
}

func acquireFor(p *pool.Pool, c *client) {
	go func() {
		defer close(c.done)
		c.conn, c.err = p.Acquire(&c.w, c, 0)
	}()
}

// got waits until all has come to rest and returns whether c has a connection.
func (c *client) got(t *testing.T) bool {
	t.Helper()
	synctest.Wait()
	select {
	case <-c.done:
		if c.err != nil {
			t.Fatalf("acquire: %v", c.err)
		}
		return true
	default:
		return false
	}
}

// release gives the connection back with nothing sent.
func (c *client) release(t *testing.T) {
	t.Helper()
	if err := c.conn.Send(&backend.Parcel{}); err != nil {
		t.Errorf("release: %v", err)
	}
	synctest.Wait()
}

// failed returns the error of an acquire that is over.
func (c *client) failed(t *testing.T) error {
	t.Helper()
	synctest.Wait()
	select {
	case <-c.done:
		if c.err == nil {
			t.Fatal("got a connection, wanted an error")
		}
		return c.err
	default:
		t.Fatal("still waiting, wanted an error")
		return nil
	}
}

// pass lets time go by in the bubble.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}
