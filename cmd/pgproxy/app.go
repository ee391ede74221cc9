package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/admin"
	"pgproxy/auth"
	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/metrics"
	"pgproxy/monitor"
	"pgproxy/pool"
	"pgproxy/proxy"
	"pgproxy/router"
)

// app is one running proxy: everything that a configuration asks for, put
// together.
type app struct {
	// Set at construction.
	log     *slog.Logger
	logs    *logs // nil: the configuration says nothing of the log
	router  *router.Router
	monitor *monitor.Monitor
	pools   *pool.Set
	server  *proxy.Server
	console *admin.Console
	metrics *metrics.Metrics
	stop    chan string // the console's SHUTDOWN, with its mode

	resolver   backend.Resolver
	succession *succession
	retired    bool   // another process has taken over; the main goroutine's
	httpName   string // what HTTP is listened on for

	reloading sync.Mutex // one reload at a time

	// Guarded by mu.
	mu    sync.Mutex
	loads map[string]*atomic.Int64 // leases by server address
}

// appOptions are what a process has besides its configuration.
type appOptions struct {
	logs      *logs                                                    // to be set up as the configuration says
	listeners []proxy.Socket                                           // of the service manager, or of another process
	http      net.Listener                                             // of another process; nil: none
	httpName  string                                                   // what that was opened for
	heir      bool                                                     // another process serves until this one does
	lookup    func(ctx context.Context, host string) ([]string, error) // of names; nil: as the system does
}

// newApp builds a proxy and opens its listeners. On error nothing is left
// running. It does not wait for servers: clients do, when they need one.
func newApp(cfg *config.Config, log *slog.Logger, opt appOptions) (*app, error) {
	a := &app{log: log, logs: opt.logs, loads: make(map[string]*atomic.Int64), stop: make(chan string, 1), succession: newSuccession()}
	a.resolver.Lookup = opt.lookup
	for _, w := range cfg.Warnings {
		log.Warn("configuration", "warning", w)
	}
	st, err := loadSettings(cfg, nil)
	if err != nil {
		return nil, err
	}
	a.router = router.New(router.Options{MaxParse: cfg.Proxy.MaxQueryParseSize})
	a.pools = pool.New(cfg, pool.Options{Log: log, Now: router.Nanotime, Load: a.load, Suspect: a.suspect, Dial: a.dialer})
	a.monitor = monitor.New(cfg, monitor.Options{Log: log, Dial: a.dialer, Load: a.load, Gate: a.pools})
	a.metrics = metrics.New(metrics.Options{Pools: a.pools, Monitor: a.monitor, Version: fullVersion()})
	a.server = proxy.New(st, proxy.Options{
		Log: log, Pools: a.pools, Router: a.router, Topologies: a.monitor, Trace: a.metrics.Trace(),
	})
	a.metrics.Observe(a.server)
	a.console = admin.New(admin.Options{
		Log: log, Server: a.server, Pools: a.pools, Health: a.monitor, Failover: a.monitor, Catalogs: a.monitor, Hosts: a.hosts, Version: fullVersion(),
		Reload: func() error { return a.reload(a.config().Path) },
		Set:    a.set,
		Shutdown: func(mode string) {
			select {
			case a.stop <- mode:
			default: // it is on its way already
			}
		},
	})
	a.server.SetConsole(a.console)
	if opt.heir {
		a.awaitServers()
	}
	if err := a.listen(cfg, opt); err != nil {
		ctx, done := context.WithTimeout(context.Background(), 10*time.Second)
		defer done()
		return nil, errors.Join(err, a.close(ctx))
	}
	return a, nil
}

// loadSettings reads the files that logins depend on. old is what is in force; nil at
// the start.
func loadSettings(cfg *config.Config, old *proxy.Settings) (*proxy.Settings, error) {
	users, err := loadUsers(cfg)
	if err != nil {
		return nil, err
	}
	encrypt, err := cfg.Proxy.ClientTLS.ForClients()
	if err != nil {
		return nil, fmt.Errorf("client_tls_sslmode: %w", err)
	}
	if cfg.Proxy.AuthType == config.AuthPAM && !auth.HasPAM() {
		return nil, auth.ErrNoPAM
	}
	dir, err := loadLDAP(cfg)
	if err != nil {
		return nil, err
	}
	hba, err := loadHBA(cfg)
	if err != nil {
		return nil, err
	}
	p, authenticator := &cfg.Proxy, auth.New
	if old != nil {
		authenticator = old.Auth.Reload // keeps what was derived
	}
	logins := authenticator(p.AuthType, users, p.AdminUsers, p.StatsUsers).WithHBA(hba).WithLDAP(dir)
	return &proxy.Settings{Config: cfg, Users: users, Auth: logins, TLS: encrypt}, nil
}

// loadHBA reads auth_hba_file and auth_ident_file, if logins depend on them.
func loadHBA(cfg *config.Config) (*auth.HBA, error) {
	if cfg.Proxy.AuthType != config.AuthHBA {
		return nil, nil
	}
	h, err := auth.LoadHBA(cfg.Proxy.AuthHBAFile, cfg.Proxy.AuthIdentFile)
	if err == nil && h.AsksForCertificates() && cfg.Proxy.ClientTLS.CAFile == "" {
		err = fmt.Errorf("auth_hba_file %s: lines with cert or clientcert need client_tls_ca_file", cfg.Proxy.AuthHBAFile)
	}
	if err == nil && h.LacksLDAP() > 0 && cfg.Proxy.AuthLDAPOptions.Empty() {
		err = fmt.Errorf("auth_hba_file %s: line %d has ldap without options: want some, or auth_ldap_options", cfg.Proxy.AuthHBAFile, h.LacksLDAP())
	}
	return h, err
}

// loadLDAP reads auth_ldap_options, if logins depend on them.
func loadLDAP(cfg *config.Config) (*auth.LDAP, error) {
	t, options := cfg.Proxy.AuthType, cfg.Proxy.AuthLDAPOptions
	if t != config.AuthLDAP && t != config.AuthHBA || options.Empty() {
		return nil, nil
	}
	return auth.ParseLDAP(options.Reveal())
}

// loadUsers reads auth_file. Where no login depends on it, it may be missing.
func loadUsers(cfg *config.Config) (*auth.Userlist, error) {
	users, err := auth.LoadUserlist(cfg.Proxy.AuthFile)
	if errors.Is(err, fs.ErrNotExist) && !cfg.Proxy.AuthType.UsesSecrets() {
		users, err = auth.ParseUserlist(cfg.Proxy.AuthFile, nil)
	}
	if err != nil {
		return nil, err
	}
	return users.With(cfg.Users)
}

func (a *app) listen(cfg *config.Config, opt appOptions) error {
	l := opt.http
	if addr := cfg.Proxy.HTTPListen; l != nil && addr != opt.httpName {
		_ = l.Close()
		l = nil
	}
	if a.httpName = cfg.Proxy.HTTPListen; a.httpName != "" {
		if l == nil {
			lc := net.ListenConfig{}
			if cfg.Proxy.SoReuseport {
				lc.Control = proxy.ReusePort
			}
			var err error
			if l, err = lc.Listen(context.Background(), "tcp", a.httpName); err != nil {
				closeAll(opt.listeners)
				return fmt.Errorf("http_listen: %w", err)
			}
		}
		if err := a.metrics.Serve(l); err != nil {
			closeAll(opt.listeners)
			return fmt.Errorf("http_listen: %w", err)
		}
		a.log.Info("serving metrics and health", "address", l.Addr().String())
	}
	return a.server.Listen(opt.listeners...)
}

// config is the configuration in force.
func (a *app) config() *config.Config { return a.server.Settings().Config }

// load returns the counter of a server's leases, which pools count in and the
// router reads.
func (a *app) load(addr string) *atomic.Int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.loads[addr]
	if n == nil {
		n = new(atomic.Int64)
		a.loads[addr] = n
	}
	return n
}

// suspect tells the monitor of a server that a pool cannot reach. Pools know
// databases by the name that clients ask for, the monitor by their entry.
func (a *app) suspect(database, addr string) {
	if db, ok := a.server.Settings().Config.Database(database); ok {
		a.monitor.Suspect(db.Name, addr)
	}
}

// dialer is newDialer with the names that are known.
func (a *app) dialer(cfg *config.Config, db *config.Database) *backend.Dialer {
	d := newDialer(cfg, db)
	d.Resolver, d.DNSMaxTTL = &a.resolver, cfg.Proxy.DNSMaxTTL
	return d
}

// hosts lists the names that are known, for the console.
func (a *app) hosts() []admin.Host {
	var out []admin.Host
	for _, h := range a.resolver.Hosts() {
		out = append(out, admin.Host(h))
	}
	return out
}

// newDialer makes what opens server connections for a database.
func newDialer(cfg *config.Config, db *config.Database) *backend.Dialer {
	p := &cfg.Proxy
	return &backend.Dialer{
		Limits:         backend.Limits{MaxPrepared: p.MaxPreparedStatements, AuditRatio: p.SessionAuditRatio, CancelWait: p.CancelWaitTimeout},
		ConnectTimeout: p.ServerConnectTimeout,
		Keepalive:      net.KeepAliveConfig{Enable: p.TCPKeepalive, Idle: p.TCPKeepIdle, Interval: p.TCPKeepIntvl, Count: p.TCPKeepCnt},
		UserTimeout:    p.TCPUserTimeout,
		ConnectQuery:   db.ConnectQuery,
		Params:         loginParams(db),
		Now:            router.Nanotime,
		TLS:            &db.TLS,
	}
}

// loginParams are what a database's logins to the servers set.
func loginParams(db *config.Database) map[string]string {
	m := make(map[string]string)
	for name, v := range map[string]string{
		"client_encoding": db.ClientEncoding, "DateStyle": db.DateStyle, "TimeZone": db.TimeZone, "application_name": db.ApplicationName,
	} {
		if v != "" {
			m[name] = v
		}
	}
	return m
}

// reload reads the file again and takes it over whole, or changes nothing.
func (a *app) reload(path string) error {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	cfg, err := config.Load(path)
	if err == nil {
		err = a.apply(cfg)
	}
	if err != nil {
		a.log.Error("reload refused: the configuration in force stays", "error", err)
		return err
	}
	a.log.Info("configuration reloaded", "file", path)
	return nil
}

// set changes one key of the configuration in force, until the next reload.
func (a *app) set(key, value string) error {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	cfg, err := a.config().With(key, value)
	if err != nil {
		return err
	}
	return a.apply(cfg)
}

// apply takes over a configuration. On error nothing has changed. reloading is
// held.
func (a *app) apply(cfg *config.Config) error {
	old := a.server.Settings()
	st, err := loadSettings(cfg, old)
	if err != nil {
		return err // whoever asked logs it
	}
	for _, w := range cfg.Warnings {
		if !slices.Contains(old.Config.Warnings, w) {
			a.log.Warn("configuration", "warning", w)
		}
	}
	if w := secretsWarning(st.Users); w != "" && w != secretsWarning(old.Users) {
		a.log.Warn("configuration", "warning", w)
	}
	for _, k := range needRestart(old.Config, cfg) {
		a.log.Warn("a changed key needs a restart", "key", k)
	}
	if a.logs != nil {
		if err := a.logs.apply(&cfg.Proxy); err != nil {
			a.log.Error("the log stays where it is", "error", err)
		}
	}
	a.monitor.Apply(cfg)
	a.server.Apply(st)
	a.pools.Apply(cfg)
	return nil
}

// needRestart lists the keys whose change a reload does not apply.
func needRestart(old, now *config.Config) []string {
	was, is := old.Values(), now.Values()
	var out []string
	for _, k := range config.Keys() {
		if !k.Changeable && was[k.Name] != is[k.Name] {
			out = append(out, k.Name)
		}
	}
	slices.Sort(out)
	return out
}

// close ends everything and waits for it, until ctx ends. Clients are cut.
func (a *app) close(ctx context.Context) error {
	err := a.server.Close()
	a.console.Close()
	err = errors.Join(err, a.pools.Close(ctx))
	a.monitor.Close()
	return errors.Join(err, a.metrics.Close())
}
