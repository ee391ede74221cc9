package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/router"
)

const (
	catalogName  = "pgproxy catalog" // application_name of a reading
	catalogLimit = 2 * time.Minute   // of one reading
	catalogRetry = time.Second       // pause after a reading that has failed, at first
	catalogPause = 50 * time.Millisecond
	maxReaders   = 64 // databases of one entry whose catalogs are read

	codeInvalidCatalogName = "3D000"
)

// reader reads the catalog of one database from its primary, on a timer and when
// it is asked to, and gives it to the router. It has a connection only while it
// reads.
type reader struct {
	// Set at construction.
	entry  *entry
	dbname string
	prover *router.Prover
	log    *slog.Logger
	ctx    context.Context // of the goroutine
	stop   context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended

	settings atomic.Pointer[catalogSettings]
	status   atomic.Pointer[CatalogStatus] // what the last readings have found; never nil

	// Owned by the goroutine.
	memory *memory
	sum    uint64
	known  *catalogSettings // those that the catalog in force was made with
	told   string           // the error that was logged last

	functions, relations int // that were found last
}

// catalogSettings is what a reading depends on; a reload replaces it whole.
type catalogSettings struct {
	login    backend.Login // without its server
	dialer   *backend.Dialer
	interval time.Duration
	over     router.Overrides
	patterns string // over as text
}

func newCatalogSettings(cfg *config.Config, db *config.Database, d *backend.Dialer) *catalogSettings {
	set := &catalogSettings{
		login:  backend.Login{User: db.MonitorUser, Password: db.MonitorPassword, AppName: catalogName},
		dialer: d, interval: cfg.Proxy.CatalogInterval,
		over:     router.Overrides{Read: compile(db.ReadFunctions), Write: compile(db.WriteFunctions)},
		patterns: fmt.Sprintf("%q %q", db.ReadFunctions, db.WriteFunctions),
	}
	if set.interval <= 0 {
		set.interval = time.Minute
	}
	return set
}

// compile compiles patterns that the configuration has checked.
func compile(patterns []string) []*regexp.Regexp {
	var out []*regexp.Regexp
	for _, p := range patterns {
		if re, err := config.FunctionPattern(p); err == nil {
			out = append(out, re)
		}
	}
	return out
}

// catalogs are the readers of an entry, one for each database that its clients
// are in.
type catalogs struct {
	// Set at construction.
	entry *entry
	ctx   context.Context // of the Monitor
	goes  *sync.WaitGroup
	none  *router.Prover // of databases that have no reader: it proves nothing

	// Guarded by mu.
	mu       sync.Mutex
	settings *catalogSettings // nil: nothing is split, no catalog is needed
	readers  map[string]*reader
	closed   bool
}

func newCatalogs(e *entry) *catalogs {
	return &catalogs{entry: e, readers: make(map[string]*reader), none: router.NewProver(e.name)}
}

// configure takes over a new configuration.
func (c *catalogs) configure(cfg *config.Config, db *config.Database, d *backend.Dialer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	on := db.ReadWriteSplit.Splits() && db.Several() || db.ShareDepth > 1
	c.none.Switch(on)
	if !on || db.MonitorUser == "" {
		c.settings = nil
		c.endLocked()
		return
	}
	c.settings = newCatalogSettings(cfg, db, d)
	for _, r := range c.readers {
		r.settings.Store(c.settings)
		r.prover.Refresh()
	}
	if db.DBName != "" && db.OneDatabase() {
		c.readerLocked(db.DBName)
	}
}

// Prover returns what proves statements in a database of the entry; the first call
// for one starts the reading of its catalog.
func (c *catalogs) Prover(dbname string) *router.Prover {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.settings == nil || c.closed {
		return c.none
	}
	if r := c.readerLocked(dbname); r != nil {
		return r.prover
	}
	return c.none
}

func (c *catalogs) readerLocked(dbname string) *reader {
	if r := c.readers[dbname]; r != nil {
		return r
	}
	if len(c.readers) >= maxReaders {
		return nil
	}
	ctx, stop := context.WithCancel(c.ctx)
	r := &reader{
		entry: c.entry, dbname: dbname, prover: router.NewProver(c.entry.name), log: c.entry.log.With("dbname", dbname),
		ctx: ctx, stop: stop, done: make(chan struct{}), memory: newMemory(),
	}
	r.settings.Store(c.settings)
	r.status.Store(&CatalogStatus{Database: c.entry.name, DBName: dbname})
	r.prover.Switch(true)
	c.readers[dbname] = r
	c.goes.Go(func() { // until r.stop, or the end of the Monitor
		defer close(r.done)
		defer stop()
		if r.run() {
			c.forget(r)
		}
	})
	return r
}

// forget drops the reader of a database that does not exist.
func (c *catalogs) forget(r *reader) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.readers[r.dbname] == r {
		delete(c.readers, r.dbname)
	}
}

// endLocked ends all readers. Sessions that still have their provers go on
// without: what is not proved goes to the primary, or is judged by its text where
// nothing is split any more.
func (c *catalogs) endLocked() {
	for _, r := range c.readers {
		r.stop()
		r.prover.Changed(router.Nanotime(), false)
	}
	clear(c.readers)
}

// close ends all readers and waits for them.
func (c *catalogs) close() {
	c.mu.Lock()
	c.closed = true
	readers := slices.Collect(maps.Values(c.readers))
	c.endLocked()
	c.mu.Unlock()
	for _, r := range readers {
		<-r.done
	}
}

// changed is told that the primary is another one, whose catalog may be too.
func (c *catalogs) changed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.readers {
		r.prover.Changed(router.Nanotime(), true)
	}
}

// run reads until its context ends, or returns true when the database does not
// exist.
func (r *reader) run() (gone bool) {
	retry := catalogRetry
	for {
		set := r.settings.Load()
		moved := *r.entry.changed.Load() // before the picture, so that no new primary is missed
		began := time.Now()
		err := r.read(set)
		if r.ctx.Err() != nil {
			return false
		}
		took := time.Since(began)
		r.note(took, err)
		wait := time.Duration(float64(set.interval) * (0.9 + 0.2*rand.Float64()))
		if !errors.Is(err, errNoPrimary) {
			moved = nil // another picture of the servers mends nothing
		}
		if err != nil {
			if pe, ok := errors.AsType[*pgconn.PgError](err); ok && pe.Code == codeInvalidCatalogName {
				return true
			}
			r.tell(err)
			wait = min(retry, wait)
			retry = min(2*retry, 30*time.Second)
		} else {
			r.told, retry = "", catalogRetry
		}
		if !r.rest(wait, moved) {
			return false
		}
		// Changes that come one behind the other are not each worth a reading: it
		// takes half of the time at most.
		if !r.sleep(max(catalogPause, 2*took) - time.Since(began)) {
			return false
		}
	}
}

// rest waits for the next reading: d, or until somebody asks for it, or the
// servers are not what they were.
func (r *reader) rest(d time.Duration, moved <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.prover.Kicks():
	case <-moved:
	case <-r.ctx.Done():
		return false
	}
	return true
}

func (r *reader) sleep(d time.Duration) bool {
	if d <= 0 {
		return r.ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.ctx.Done():
		return false
	}
}

// tell logs an error that is not a repetition.
func (r *reader) tell(err error) {
	if errors.Is(err, errNoPrimary) {
		return // the checks of the servers have told
	}
	if text := words(err); text != r.told {
		r.told = text
		r.log.Warn("the catalog cannot be read, so no statement that depends on it goes to replicas", "error", text)
	}
}

var errNoPrimary = errors.New("no primary is up")

// read reads the catalog once, if there is one primary.
func (r *reader) read(set *catalogSettings) error {
	addr := ""
	for _, s := range r.entry.topology.Load().Servers {
		if s.Role == router.RolePrimary && s.Up {
			if addr != "" {
				return errNoPrimary
			}
			addr = s.Addr
		}
	}
	servers := *r.entry.list.Load()
	i := slices.IndexFunc(servers, func(s *server) bool { return s.addr == addr })
	if i < 0 {
		return errNoPrimary
	}
	ctx, cancel := context.WithTimeout(r.ctx, catalogLimit)
	defer cancel()
	conn, err := dialCatalog(ctx, set, servers[i].settings.Load().login.Server, r.dbname)
	if err != nil {
		return err
	}
	defer closeCatalog(conn)
	select {
	case <-r.prover.Kicks(): // what was asked for until now is answered by this reading
	default:
	}
	set = r.settings.Load() // the kick may have been that of a reload
	begun := router.Nanotime()
	objects, sum, err := readCatalog(context.WithoutCancel(ctx), conn, r.memory, set.over)
	if err != nil {
		return err
	}
	now := router.Nanotime()
	if r.known != nil && r.sum == sum && r.known.patterns == set.patterns {
		r.prover.Learn(nil, begun, now, true)
		return nil
	}
	first := r.known == nil
	r.functions, r.relations = len(objects.Functions), len(objects.Relations)
	r.prover.Learn(router.NewCatalog(objects, set.over), begun, now, false)
	r.sum, r.known = sum, set
	level := slog.LevelDebug
	if first {
		level = slog.LevelInfo
	}
	r.log.Log(ctx, level, "catalog read", "server", addr, "functions", len(objects.Functions), "relations", len(objects.Relations),
		"took", time.Duration(router.Nanotime()-begun).Round(time.Millisecond))
	return nil
}

// dialCatalog connects and logs in. The connection dies with ctx.
func dialCatalog(ctx context.Context, set *catalogSettings, server config.Server, dbname string) (*pgconn.PgConn, error) {
	login := set.login
	login.Server, login.Database = server, dbname
	cfg, err := set.dialer.Config(login)
	if err != nil {
		return nil, err
	}
	// As in dialLine, there is one socket. It is closed when ctx ends, so that
	// nothing of pgconn lives on, which would try to part in peace.
	var dialed atomic.Bool
	dial := cfg.DialFunc
	cfg.DialFunc = func(in context.Context, network, addr string) (net.Conn, error) {
		if dialed.Swap(true) {
			return nil, net.ErrClosed
		}
		nc, err := dial(in, network, addr)
		if err == nil {
			context.AfterFunc(ctx, func() { _ = nc.Close() })
		}
		return nc, err
	}
	return pgconn.ConnectConfig(ctx, cfg)
}

func closeCatalog(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	_ = conn.Close(ctx)
}
