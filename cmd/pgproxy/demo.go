package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pgproxy/config"
	"pgproxy/pgtest"
)

// The logins of the demo. Its servers listen on 127.0.0.1 and live as long as
// the demo, so the passwords are no secret.
const (
	demoDatabase = "app"
	demoUser     = "app"
	demoPassword = "app"
	demoAdmin    = "admin"
	demoMonitor  = "pgproxy_monitor"
)

// demoOptions are the flags of the demo.
type demoOptions struct {
	length   time.Duration
	load     bool
	clients  int
	port     int
	httpPort int
	replicas int
	poolSize int
	logs     bool
}

func demoCommand(args []string, stdout, stderr io.Writer) int {
	var opt demoOptions
	fs := newFlags("demo", "[options]", stderr)
	fs.DurationVar(&opt.length, "for", 0, "end by itself after this `time`; 0: at Ctrl-C")
	fs.BoolVar(&opt.load, "load", true, "run a small workload of reads and writes")
	fs.IntVar(&opt.clients, "clients", 50, "connections of the workload")
	fs.IntVar(&opt.port, "port", 0, "`port` for applications and the console; 0: any free one")
	fs.IntVar(&opt.httpPort, "http-port", 0, "`port` for metrics and health; 0: any free one")
	fs.IntVar(&opt.replicas, "replicas", 2, "streaming replicas, 0 to 8")
	fs.IntVar(&opt.poolSize, "pool-size", 20, "server connections of the pool on each server")
	fs.BoolVar(&opt.logs, "logs", false, "show the proxy's log")
	if code, done := parseFlags(fs, args); done {
		return code
	}
	if fs.NArg() > 0 || opt.clients < 1 || opt.clients > 1000 || opt.replicas < 0 || opt.replicas > 8 || opt.poolSize < 1 || opt.poolSize > 80 {
		fmt.Fprintln(stderr, "pgproxy demo: want 1 to 1000 clients, 0 to 8 replicas, a pool size of 1 to 80, and no further arguments")
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := demo(ctx, opt, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "pgproxy demo: %v\n", err)
		return exitFailed
	}
	return exitOK
}

// demo starts servers and proxy, runs the workload and shows figures until ctx
// ends or the time is over, and removes everything.
func demo(ctx context.Context, opt demoOptions, stdout, stderr io.Writer) (err error) {
	fmt.Fprintf(stdout, "Starting a PostgreSQL primary and %d streaming replicas.\n", opt.replicas)
	cluster, err := pgtest.StartCluster(ctx, pgtest.Options{Replicas: opt.replicas, Log: stdout})
	if err != nil {
		if ctx.Err() != nil {
			return nil // Ctrl-C during the start: StartCluster has left nothing
		}
		return err
	}
	defer func() {
		end, done := context.WithTimeout(context.Background(), 20*time.Second)
		defer done()
		if cerr := cluster.Close(end); cerr != nil {
			err = errors.Join(err, fmt.Errorf("ending the servers: %w", cerr))
		}
	}()
	if err := demoSample(ctx, cluster); err != nil {
		return fmt.Errorf("sample database: %w", err)
	}
	cfg, err := demoConfig(cluster, opt)
	if err != nil {
		return err
	}
	logs := io.Discard
	if opt.logs {
		logs = stderr
	}
	a, err := newApp(cfg, slog.New(slog.NewTextHandler(logs, nil)), appOptions{})
	if err != nil {
		return err
	}
	defer func() {
		end, done := context.WithTimeout(context.Background(), closeTimeout)
		defer done()
		err = errors.Join(err, a.close(end))
	}()
	if opt.length > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, opt.length)
		defer stop()
	}
	return a.demoRun(ctx, opt, stdout)
}

// demoRun runs the workload and the figures side by side.
func (a *app) demoRun(ctx context.Context, opt demoOptions, stdout io.Writer) error {
	port := a.server.Addrs()[0].(*net.TCPAddr).Port
	psql := func(user, db string) string {
		return fmt.Sprintf("psql \"host=127.0.0.1 port=%d user=%s password=%s dbname=%s\"", port, user, demoPassword, db)
	}
	head := []string{
		"application   " + psql(demoUser, demoDatabase),
		"console       " + psql(demoAdmin, "pgproxy") + " -c \"SHOW POOLS\"",
		"metrics       http://" + a.metrics.Listener().Addr().String() + "/metrics   (also /healthz and /readyz)",
		"try           SHOW pgproxy.route; after a statement: where it went, and why",
	}
	var load *demoLoad
	if opt.load {
		load = startDemoLoad(ctx, fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/%s?sslmode=disable", demoUser, demoPassword, port, demoDatabase), opt.clients)
		defer load.wait()
	}
	newScreen(a, load, head, stdout).run(ctx)
	return nil
}

// demoSample creates the roles and the sample tables.
func demoSample(ctx context.Context, c *pgtest.Cluster) error {
	if err := c.CreateRole(ctx, demoUser, demoPassword, ""); err != nil {
		return err
	}
	if err := c.CreateRole(ctx, demoMonitor, demoPassword, ""); err != nil {
		return err
	}
	if err := c.Exec(ctx, "CREATE DATABASE "+demoDatabase+" OWNER "+demoUser); err != nil {
		return err
	}
	const tables = `
		SET ROLE app;
		CREATE TABLE accounts (id int PRIMARY KEY, owner text NOT NULL, balance bigint NOT NULL);
		INSERT INTO accounts SELECT i, 'owner ' || i, 1000 FROM generate_series(1, 10000) i;
		CREATE TABLE transfers (id bigserial PRIMARY KEY, source int, target int, amount bigint, at timestamptz DEFAULT now());
		ANALYZE;`
	if err := c.Primary.Exec(ctx, demoDatabase, tables); err != nil {
		return err
	}
	return c.WaitCaughtUp(ctx)
}

// demoConfig writes a configuration into the cluster's folder and reads it as
// any other.
func demoConfig(c *pgtest.Cluster, opt demoOptions) (*config.Config, error) {
	var servers strings.Builder
	for _, n := range c.Nodes() {
		fmt.Fprintf(&servers, "  { host = %q, port = %d },\n", n.Host, n.Port)
	}
	users := filepath.Join(c.Dir, "userlist.txt")
	list := fmt.Sprintf("%q %q\n%q %q\n", demoUser, demoPassword, demoAdmin, demoPassword)
	if err := os.WriteFile(users, []byte(list), 0o600); err != nil {
		return nil, err
	}
	text := `[proxy]
listen_addr = "127.0.0.1"
listen_port = ` + strconv.Itoa(opt.port) + `
http_listen = "127.0.0.1:` + strconv.Itoa(opt.httpPort) + `"
auth_file = ` + strconv.Quote(users) + `
admin_users = ["` + demoAdmin + `"]
monitor_user = "` + demoMonitor + `"
monitor_password = "` + demoPassword + `"
default_pool_size = ` + strconv.Itoa(opt.poolSize) + `

[databases.` + demoDatabase + `]
servers = [
` + servers.String() + `]
`
	return config.Parse(filepath.Join(c.Dir, "pgproxy.toml"), []byte(text))
}
