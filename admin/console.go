package admin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/monitor"
	"pgproxy/pool"
	"pgproxy/proxy"
	"pgproxy/wire"
)

// PgBouncer is the release whose console this one is like.
const PgBouncer = "1.25.2"

// Health tells how servers are. Package monitor has the real one.
type Health interface{ Status() []monitor.Status }

// Catalogs tells what is known of the databases' catalogs. Package monitor has the
// real one.
type Catalogs interface {
	Catalogs() []monitor.CatalogStatus
}

// Options for a Console. All must be given but Health, Failover, Catalogs and
// Hosts.
type Options struct {
	Log      *slog.Logger
	Server   *proxy.Server
	Pools    *pool.Set
	Health   Health
	Failover Failover
	Catalogs Catalogs
	Hosts    func() []Host                 // names in DNS that were looked up
	Version  string                        // of pgproxy
	Reload   func() error                  // read the configuration again
	Set      func(key, value string) error // change a key until the next Reload
	Shutdown func(mode string)             // "", WAIT_FOR_SERVERS or WAIT_FOR_CLIENTS; returns at once
}

// Console serves the admin database. It is a proxy.Console.
type Console struct {
	// Set at construction.
	log  *slog.Logger
	opt  Options
	stop context.CancelFunc // ends the sampler
	goes sync.WaitGroup     // the sampler

	// Atomic.
	queries, received, sent atomic.Uint64 // of the console's own clients

	// Guarded by mu.
	mu       sync.Mutex
	clients  map[uint64]*client // by session
	pauses   map[*pauseWait]struct{}
	sample   sample
	averages map[string]counts // by database, of the last complete period
}

var _ proxy.Console = (*Console)(nil)

// New makes a Console and starts to take samples. Close ends that.
func New(opt Options) *Console {
	ctx, stop := context.WithCancel(context.Background())
	c := &Console{log: opt.Log, opt: opt, stop: stop, clients: make(map[uint64]*client), pauses: make(map[*pauseWait]struct{})}
	c.sample = c.take(time.Now())
	c.goes.Add(1)
	go c.sampler(ctx)
	return c
}

// Close stops the sampler and waits for it. Clients end with the server that
// they came through.
func (c *Console) Close() {
	c.stop()
	c.goes.Wait()
}

// startupParameters are what a client is told at login.
var startupParameters = [][2]string{
	{"server_version", PgBouncer + "/bouncer"},
	{"client_encoding", "UTF8"},
	{"server_encoding", "UTF8"},
	{"DateStyle", "ISO"},
	{"TimeZone", "GMT"},
	{"standard_conforming_strings", "on"},
	{"integer_datetimes", "on"},
	{"is_superuser", "off"},
}

// Serve talks to one client until it leaves, breaks the protocol, or ctx ends.
// The caller tells the client of the error and closes the connection.
func (c *Console) Serve(ctx context.Context, pc proxy.ConsoleClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cl := newClient(c, pc)
	c.mu.Lock()
	c.clients[pc.Session] = cl
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.clients, pc.Session)
		c.mu.Unlock()
	}()

	// A deadline in the past ends reads and writes that are under way.
	past := time.Unix(1, 0)
	release := context.AfterFunc(ctx, func() { _ = pc.Conn.SetDeadline(past) })
	defer release()

	log := c.log.With("session", pc.Session, "user", pc.Identity.User)
	cfg := &c.opt.Server.Settings().Config.Proxy
	if cfg.LogConnections {
		log.Info("console client connected", "database", pc.Database, "admin", pc.Identity.Admin)
	}
	var out []byte
	for _, p := range startupParameters {
		out = wire.AppendParameterStatus(out, p[0], p[1])
	}
	out = wire.AppendBackendKeyData(out, pc.PID, pc.Secret)
	cl.out = wire.AppendReadyForQuery(out, wire.TxIdle)
	err := cl.flush(ctx)
	if err == nil {
		err = cl.serve(ctx, log)
	}
	if ctx.Err() != nil {
		err = wire.Fatalf(wire.CodeAdminShutdown, "terminating connection due to administrator command")
	}
	if cfg.LogDisconnections {
		log.Info("console client disconnected", "reason", reason(err))
	}
	return err
}

func reason(err error) string {
	if err == nil || errors.Is(err, io.EOF) {
		return "client close request"
	}
	return err.Error()
}

// list returns the console's own clients in order of their sessions.
func (c *Console) list() []*client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.SortedFunc(maps.Values(c.clients), func(a, b *client) int { return int(int64(a.pc.Session) - int64(b.pc.Session)) })
}
