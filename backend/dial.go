package backend

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/auth"
	"pgproxy/config"
	"pgproxy/netio"
	"pgproxy/wire"
)

// tcpUserTimeout is TCP_USER_TIMEOUT of linux/tcp.h, which package syscall lacks.
const tcpUserTimeout = 18

// Login says where to and as whom a server connection is opened.
type Login struct {
	Server   config.Server
	Database string
	User     string
	Password config.Secret
	AppName  string // application_name of the login
}

// Dialer opens server connections. Its fields are set before its first use and
// not changed after; Dial may be called by many goroutines.
type Dialer struct {
	Limits         Limits
	ConnectTimeout time.Duration // connect and login; 0: no limit
	Keepalive      net.KeepAliveConfig
	UserTimeout    time.Duration     // TCP_USER_TIMEOUT; 0: the system's
	ConnectQuery   string            // run once on each new connection
	Params         map[string]string // of the login: client_encoding and the like
	Now            func() int64      // monotonic nanoseconds
	// Connect opens a socket, for logins and cancel requests; nil: over TCP or a
	// Unix socket. Keepalive and UserTimeout are for the latter.
	Connect func(ctx context.Context, network, addr string) (net.Conn, error)
	TLS     *config.TLS // nil: none
	// Watch, if set, returns what stands between a new connection and its owner: tests
	// look at what is released.
	Watch func(Owner) Owner

	Resolver  *Resolver     // of host names; nil: as the system does, at each dial
	DNSMaxTTL time.Duration // for how long what it finds is good

	mu     sync.Mutex
	tls    map[string]*tls.Config // by host, guarded by mu
	worked map[[2]string]int      // which of several passwords, by server and user, guarded by mu
}

// tryAll tries the passwords of a login, one after the other, as long as the server
// says that they are wrong. It begins with the one that worked last.
func (d *Dialer) tryAll(l Login, try func(Login) error) error {
	list, at := auth.Passwords(l.Password), [...]string{l.Server.Addr(), l.User}
	if len(list) == 1 {
		return try(l)
	}
	d.mu.Lock()
	first := d.worked[at]
	d.mu.Unlock()
	var err error
	for i := range list {
		n := (first + i) % len(list)
		l.Password = list[n]
		if err = try(l); err == nil {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.worked == nil {
				d.worked = make(map[[2]string]int)
			}
			d.worked[at] = n
			return nil
		}
		var e *wire.Error
		if !errors.As(err, &e) || e.Code != wire.CodeInvalidPassword {
			return err
		}
	}
	return err
}

// Open connects and logs in, for what the proxy asks a server itself.
func (d *Dialer) Open(ctx context.Context, l Login) (pc *pgconn.PgConn, err error) {
	err = d.tryAll(l, func(l Login) error {
		cfg, err := d.Config(l)
		if err != nil {
			return err
		}
		if pc, err = pgconn.ConnectConfig(ctx, cfg); err != nil {
			return LoginError(err)
		}
		return nil
	})
	return pc, err
}

// Config returns a pgconn configuration for l, with one password, that takes nothing
// from the environment. The monitor logs in with it.
func (d *Dialer) Config(l Login) (*pgconn.Config, error) {
	host, port := l.Server.Host, l.Server.Port
	// ParseConfig fills what is missing from the environment and from files, so
	// every parameter that it knows is given. Values are set below, not spliced.
	cfg, err := pgconn.ParseConfig("host=localhost port=1 user=u password=p dbname=d sslmode=disable passfile=/dev/null " +
		"servicefile=/dev/null connect_timeout=0 target_session_attrs=any channel_binding=prefer " +
		"min_protocol_version=3.0 max_protocol_version=3.0")
	if err != nil {
		return nil, fmt.Errorf("login configuration: %w", err)
	}
	cfg.Host, cfg.Port = host, uint16(port)
	cfg.User, cfg.Password, cfg.Database = l.User, l.Password.Reveal(), l.Database
	cfg.Fallbacks, cfg.TLSConfig, cfg.ValidateConnect, cfg.AfterConnect = nil, nil, nil, nil
	cfg.RuntimeParams = make(map[string]string, len(d.Params)+1)
	maps.Copy(cfg.RuntimeParams, d.Params)
	if l.AppName != "" {
		cfg.RuntimeParams["application_name"] = l.AppName
	}
	cfg.ConnectTimeout = d.ConnectTimeout
	cfg.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	proof, proves := auth.ProofOf(l.Password)
	if proves {
		cfg.Password = ""
	}
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		nc, err := d.dial(ctx, l.Server)
		if err == nil && proves {
			nc = &prover{Conn: nc, proof: proof}
		}
		return nc, err
	}
	cfg.OnNotice, cfg.OnNotification = nil, nil
	return cfg, nil
}

// dial opens a socket to s, and encrypts it.
func (d *Dialer) dial(ctx context.Context, s config.Server) (net.Conn, error) {
	nc, err := d.open(ctx, s)
	if err != nil {
		return nil, err
	}
	return d.secure(ctx, nc, s)
}

func (d *Dialer) open(ctx context.Context, s config.Server) (net.Conn, error) {
	if d.Connect != nil {
		return d.Connect(ctx, s.Network(), s.Addr())
	}
	nd := net.Dialer{KeepAliveConfig: d.Keepalive}
	if d.UserTimeout > 0 && s.Network() == "tcp" {
		nd.Control = func(_, _ string, raw syscall.RawConn) error {
			var serr error
			err := raw.Control(func(fd uintptr) {
				serr = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(d.UserTimeout/time.Millisecond))
			})
			return errors.Join(err, serr)
		}
	}
	addrs, err := d.Addrs(ctx, s.Network(), s.Host)
	switch {
	case err != nil:
		return nil, err
	case addrs != nil:
		return dialHost(ctx, &nd, addrs, strconv.Itoa(s.Port))
	}
	return nd.DialContext(ctx, s.Network(), s.Addr())
}

var errOneSocket = errors.New("a login opens one socket")

// Dial connects, logs in and starts the connection's goroutine. A refusal by the
// server is returned as *wire.Error, wrapped with the server's address.
func (d *Dialer) Dial(ctx context.Context, l Login, owner Owner) (*Conn, error) {
	hj, home, err := d.login(ctx, l, nil, d.ConnectQuery)
	if err != nil {
		return nil, err
	}
	if d.Watch != nil {
		owner = d.Watch(owner)
	}
	return d.adopt(hj, l, owner, home), nil
}

// login connects, logs in with these parameters besides the usual ones, runs query
// if there is one, and leaves the connection between two messages. It returns also
// which settings the query has changed.
func (d *Dialer) login(ctx context.Context, l Login, params map[string]string, query string) (hj *pgconn.HijackedConn, home *Settings, err error) {
	err = d.tryAll(l, func(l Login) (err error) {
		hj, home, err = d.loginOnce(ctx, l, params, query)
		return err
	})
	return hj, home, err
}

// loginOnce is login with one password.
func (d *Dialer) loginOnce(ctx context.Context, l Login, params map[string]string, query string) (*pgconn.HijackedConn, *Settings, error) {
	cfg, err := d.Config(l)
	if err != nil {
		return nil, nil, err
	}
	maps.Copy(cfg.RuntimeParams, params)
	if d.ConnectTimeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, d.ConnectTimeout)
		defer stop()
	}
	// One socket for one login: after a failure pgconn would open another for a
	// cancel request and drain the first for up to 15 s.
	var nc net.Conn
	connect := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if nc != nil {
			return nil, errOneSocket
		}
		c, err := connect(ctx, network, addr)
		nc = c
		return c, err
	}
	pc, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		if nc != nil {
			_ = nc.Close()
		}
		return nil, nil, fmt.Errorf("login to %s: %w", l.Server.Addr(), LoginError(err))
	}
	var home *Settings
	if query != "" {
		// Errors of connect_query are ignored, as in PgBouncer.
		_, _ = pc.Exec(ctx, query).ReadAll()
		home = readHome(ctx, pc)
	}
	// A write that took long has left pgconn a reader of its own, which would take
	// the first reply: SyncConn ends it.
	if err := pc.SyncConn(ctx); err != nil {
		_ = pc.Close(context.WithoutCancel(ctx))
		return nil, nil, fmt.Errorf("login to %s: %w", l.Server.Addr(), LoginError(err))
	}
	hj, err := pc.Hijack()
	if err != nil {
		_ = pc.Close(context.WithoutCancel(ctx))
		return nil, nil, fmt.Errorf("login to %s: %w", l.Server.Addr(), err)
	}
	if n := hj.Frontend.ReadBufferLen(); n != 0 || !wire.TxStatus(hj.TxStatus).Valid() || wire.TxStatus(hj.TxStatus) != wire.TxIdle {
		_ = hj.Conn.Close()
		return nil, nil, fmt.Errorf("login to %s: %d bytes behind the server's first ReadyForQuery: %w", l.Server.Addr(), n, errOutOfSync)
	}
	if p, ok := hj.Conn.(*prover); ok {
		hj.Conn = p.Conn // all that it has read is in the login
	}
	_ = hj.Conn.SetDeadline(time.Time{})
	return hj, home, nil
}

// readHome returns which settings connect_query has changed: they are part of a
// fresh login.
func readHome(ctx context.Context, pc *pgconn.PgConn) (home *Settings) {
	results, err := pc.Exec(ctx, changedSQL).ReadAll()
	if err != nil {
		return nil
	}
	for _, r := range results {
		for _, row := range r.Rows {
			if len(row) == 3 && string(row[0]) == "set" {
				home = home.With(string(row[1]), string(row[2]))
			}
		}
	}
	return home
}

// adopt makes a Conn of a connection that has logged in.
func (d *Dialer) adopt(hj *pgconn.HijackedConn, l Login, owner Owner, home *Settings) *Conn {
	now := d.Now()
	c := &Conn{
		Addr: l.Server.Addr(), PID: hj.PID, secret: hj.SecretKey,
		network: hj.Conn.RemoteAddr().Network(), dialed: hj.Conn.RemoteAddr().String(),
		io: netio.New(hj.Conn, headOfError+64<<10), owner: owner, limits: d.Limits, now: d.Now,
		Since: time.Now(), born: now, done: make(chan struct{}),
		status: wire.TxStatus(hj.TxStatus), params: hj.ParameterStatuses,
		home: home, restore: d.ConnectQuery,
		login: maps.Clone(hj.ParameterStatuses),
	}
	c.connect = d.again(l)
	if c.limits.MaxMessage <= 0 {
		c.limits.MaxMessage = 1<<31 - 1
	}
	if c.limits.CancelWait <= 0 {
		c.limits.CancelWait = 10 * time.Second
	}
	c.released.Store(now)
	c.q.dropped = c.droppedEntry
	c.standby.Store(c.params[inHotStandby] == "on")
	go c.loop()
	return c
}

// again returns what opens another socket to the server that l went to.
func (d *Dialer) again(l Login) func(ctx context.Context, network, addr string) (net.Conn, error) {
	connect := d.Connect
	if connect == nil {
		connect = new(net.Dialer).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := connect(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return d.secure(ctx, nc, l.Server)
	}
}

// LoginError turns what pgconn returns into a *wire.Error where the server has
// refused the login in its own words.
func LoginError(err error) error {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return &wire.Error{Severity: wire.SeverityFatal, Code: pe.Code, Message: pe.Message, Detail: pe.Detail, Hint: pe.Hint}
	}
	// pgconn names host, user and database in front of the cause: keep the cause.
	s := err.Error()
	if i := strings.LastIndex(s, "): "); i >= 0 {
		s = s[i+3:]
	}
	return &dialError{text: s, cause: err}
}

// busyCodes are what a server says that cannot take a connection at the moment: it
// is full, starts up, or ends.
var busyCodes = []string{wire.CodeTooManyConnections, wire.CodeCannotConnectNow, wire.CodeAdminShutdown, wire.CodeCrashShutdown}

// inHotStandby is the parameter by which a server reports that it is in recovery.
const inHotStandby = "in_hot_standby"

// Refused reports whether err is a server's refusal of a login in its own words.
// busy says that the server is there but cannot take another connection yet.
func Refused(err error) (refused, busy bool) {
	var e *wire.Error
	if !errors.As(err, &e) {
		return false, false
	}
	return true, slices.Contains(busyCodes, e.Code)
}

type dialError struct {
	text  string
	cause error
}

func (e *dialError) Error() string { return e.text }
func (e *dialError) Unwrap() error { return e.cause }
