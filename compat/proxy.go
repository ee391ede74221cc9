package compat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/pgtest"
)

const (
	poolSize     = 20
	readyTimeout = 30 * time.Second
)

// proxy is a pgproxy that runs in front of the cluster.
type proxy struct {
	way    string
	target target
	log    string // file
	proc   *pgtest.Process
}

// startProxy starts pgproxy and waits until every database answers through it,
// from a replica where there is splitting. It must be stopped.
func (r *compat) startProxy(ctx context.Context, way string) (*proxy, error) {
	dir := filepath.Join(r.dir, "pgproxy-"+way)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("folder: %w", err)
	}
	port, err := pgtest.FreePort()
	if err != nil {
		return nil, err
	}
	var list strings.Builder
	for _, l := range r.logins() {
		fmt.Fprintf(&list, "\"%s\" \"%s\"\n", strings.ReplaceAll(l.name, `"`, `""`), strings.ReplaceAll(l.password, `"`, `""`))
	}
	if err := os.WriteFile(filepath.Join(dir, "userlist.txt"), []byte(list.String()), 0o600); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "pgproxy.toml")
	if err := os.WriteFile(file, []byte(r.config(way, dir, port)), 0o600); err != nil {
		return nil, err
	}
	p := &proxy{way: way, target: target{port: port, socket: dir}, log: filepath.Join(dir, "log")}
	p.proc, err = pgtest.Program{Path: r.pgproxy, Args: []string{"run", "-config", file}, Dir: dir, Log: p.log}.Start()
	if err != nil {
		return nil, err
	}
	for _, s := range r.suites {
		if err := r.waitReady(ctx, p, s); err != nil {
			return nil, errors.Join(err, r.stopProxy(p))
		}
	}
	return p, nil
}

// config leaves everything that does not have to differ as it is by default.
func (r *compat) config(way, dir string, port int) string {
	nodes := r.cluster.Nodes()
	split := "auto"
	if way == Proxy {
		nodes, split = nodes[:1], "off"
	}
	var servers []string
	for _, n := range nodes {
		servers = append(servers, fmt.Sprintf("{ host = %q, port = %d }", n.Host, n.Port))
	}
	var b strings.Builder
	fmt.Fprintf(&b, `[proxy]
listen_port = %d
unix_socket_dir = %q
http_listen = ""
auth_file = "userlist.txt"
pool_mode = "transaction"
default_pool_size = %d
monitor_user = %q
monitor_password = %q
log_connections = false
log_disconnections = false
`, port, dir, poolSize, r.cluster.Superuser, r.cluster.Password)
	var seen []string
	for _, s := range r.suites {
		if slices.Contains(seen, s.database) {
			continue
		}
		seen = append(seen, s.database)
		fmt.Fprintf(&b, "\n[databases.%s]\nread_write_split = %q\nservers = [%s]\n", s.database, split, strings.Join(servers, ", "))
	}
	return b.String()
}

// waitReady logs in as a suite's owner and asks until there is the answer that the
// way is to give.
func (r *compat) waitReady(ctx context.Context, p *proxy, s suite) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready within %s", readyTimeout))
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		ready, err := p.ready(ctx, s)
		if ready {
			return nil
		}
		if gone := p.proc.Alive(); gone != nil {
			return gone
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for pgproxy: %w: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

func (p *proxy) ready(ctx context.Context, s suite) (bool, error) {
	i := slices.IndexFunc(s.logins, func(l login) bool { return l.name == s.owner })
	cfg, err := pgconn.ParseConfig("host=127.0.0.1 sslmode=disable port=" + strconv.Itoa(p.target.port))
	if err != nil {
		return false, err
	}
	cfg.User, cfg.Password, cfg.Database = s.owner, s.logins[i].password, s.database
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, "SELECT 1").ReadAll(); err != nil || p.way != Split {
		return err == nil, err
	}
	res, err := conn.Exec(ctx, "SHOW pgproxy.route").ReadAll()
	if err != nil {
		return false, err
	}
	route := string(res[0].Rows[0][0])
	if !strings.HasPrefix(route, "replica ") {
		return false, errors.New("no replica in use: " + route)
	}
	return true, nil
}

// stopProxy ends the proxy. A proxy that ended by itself, that did not end when
// asked to, or that had a panic is an error.
func (r *compat) stopProxy(p *proxy) error {
	err := p.proc.Alive()
	err = errors.Join(err, p.proc.Stop())
	text, rerr := os.ReadFile(p.log)
	if i := strings.Index(string(text), "msg=panic"); i >= 0 {
		line, _, _ := strings.Cut(string(text[i:]), "\n")
		err = errors.Join(err, errors.New("pgproxy had a "+line))
	}
	return errors.Join(err, rerr, r.keep("pgproxy-"+p.way+".log", string(text)))
}
