package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/pgtest"
)

// Bounds of what is waited for.
const (
	readyTimeout   = 30 * time.Second
	versionTimeout = 10 * time.Second
	buildTimeout   = 15 * time.Minute
)

// peer is one that is measured.
type peer struct {
	name     string
	path     string // program; "" for the direct way
	version  string // as the program says
	prepared bool   // pgbench -M prepared works
	tuned    bool   // gets the pool size that suits it best
	noRoot   bool   // refuses to be root
	family   bool   // works in many processes
	file     string // its configuration's name
	config   func(site) string
	args     func(config string) []string
	more     map[string]string // further files beside the configuration
}

// instance is a peer that runs.
type instance struct {
	peer *peer
	site site
	as   *syscall.Credential
	proc *pgtest.Process // nil for the direct way
}

// directPeer is no proxy at all.
func directPeer() *peer { return &peer{name: Direct, prepared: true} }

// pgproxyPeer takes the program at path as the peer of this name.
func pgproxyPeer(ctx context.Context, name, path string) (*peer, error) {
	path, err := program(path)
	if err != nil {
		return nil, err
	}
	version, err := output(ctx, path, "version")
	if err != nil {
		return nil, err
	}
	config := pgproxyConfig
	if name == Unsplit {
		config = func(s site) string { return pgproxyConfig(s) + "read_write_split = \"off\"\n" }
	}
	return &peer{
		name: name, path: path, version: version, prepared: true,
		file: "pgproxy.toml", config: config,
		args: func(config string) []string { return []string{"run", "-config", config} },
	}, nil
}

func build(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "pgproxy/cmd/pgproxy")
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build pgproxy/cmd/pgproxy: %w: %s", err, firstLines(string(out), 10))
	}
	return nil
}

// errNotFound is wrapped when a peer that was not asked for is not installed.
var errNotFound = errors.New("not found")

// pgbouncerPeer takes the program at path, or looks for it.
func pgbouncerPeer(ctx context.Context, path string) (*peer, error) {
	if path == "" {
		if path = lookUp("pgbouncer"); path == "" {
			return nil, fmt.Errorf("pgbouncer: %w: install it (make bench does so as root on Debian), or name it by -pgbouncer", errNotFound)
		}
	}
	path, err := program(path)
	if err != nil {
		return nil, err
	}
	version, err := output(ctx, path, "--version")
	if err != nil {
		return nil, err
	}
	prepared, err := atLeast(version, 1, 21)
	if err != nil {
		return nil, fmt.Errorf("pgbouncer: %w", err)
	}
	return &peer{
		name: PgBouncer, path: path, version: version, prepared: prepared, tuned: true, noRoot: true,
		file: "pgbouncer.ini", config: pgbouncerConfig,
		args: func(config string) []string { return []string{config} },
	}, nil
}

// lookUp finds an installed program, where root's PATH may not lead too.
func lookUp(name string) string {
	for _, dir := range []string{"", "/usr/sbin/", "/usr/local/sbin/", "/usr/local/bin/"} {
		if found, err := exec.LookPath(dir + name); err == nil {
			return found
		}
	}
	return ""
}

// pgpoolPeer looks for Pgpool-II, which cannot be told a number of server
// connections: each of its processes serves one client over connections of its own
// to all servers.
func pgpoolPeer(ctx context.Context) (*peer, error) {
	path := lookUp("pgpool")
	if path == "" {
		return nil, fmt.Errorf("pgpool: %w: install it (make bench does so as root on Debian)", errNotFound)
	}
	version, err := output(ctx, path, "--version")
	if err != nil {
		return nil, err
	}
	return &peer{
		name: Pgpool, path: path, version: version, prepared: true, noRoot: true, family: true,
		file: "pgpool.conf", config: pgpoolConfig,
		args: func(config string) []string {
			beside := func(name string) string { return filepath.Join(filepath.Dir(config), name) }
			return []string{"-n", "-D", "-f", config, "-F", beside("pcp.conf"), "-a", beside("pool_hba.conf")}
		},
		more: map[string]string{
			"pcp.conf": "", "pool_hba.conf": "host all all 127.0.0.1/32 trust\n", "pool_passwd": login + ":TEXT" + password + "\n",
		},
	}, nil
}

// program makes the path of a program absolute and checks that it is there.
func program(path string) (string, error) {
	found, err := exec.LookPath(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(found)
}

// output is the first line that a program prints.
func output(ctx context.Context, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = pgtest.ChildEnv()
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, firstLines(string(out), 3))
	}
	return firstLines(string(out), 1), nil
}

var dotted = regexp.MustCompile(`(\d+)\.(\d+)`)

// atLeast compares the first version number in a text.
func atLeast(text string, major, minor int) (bool, error) {
	m := dotted.FindStringSubmatch(text)
	if m == nil {
		return false, fmt.Errorf("no version in %q", text)
	}
	a, err1 := strconv.Atoi(m[1])
	b, err2 := strconv.Atoi(m[2])
	return a > major || a == major && b >= minor, errors.Join(err1, err2)
}

// startPeer starts a peer with a pool of so many server connections and waits
// until a client gets an answer. The instance must be stopped.
func (b *bench) startPeer(ctx context.Context, p *peer, pool int, env ...string) (*instance, error) {
	i := &instance{peer: p}
	b.serial++
	i.site = site{
		dir: filepath.Join(b.dir, strconv.Itoa(b.serial)+"-"+p.name), pool: pool,
		maxClients: b.opt.maxClients(), children: max(b.children, 32), auth: b.opt.Auth, prepared: p.prepared,
	}
	for _, n := range b.cluster.Nodes() {
		i.site.servers = append(i.site.servers, n.Port)
	}
	if p.path == "" {
		i.site.port = i.site.servers[0]
		return i, nil
	}
	if p.noRoot {
		i.as = b.as
	}
	var err1, err2 error
	i.site.port, err1 = pgtest.FreePort()
	i.site.http, err2 = pgtest.FreePort()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	text := p.config(i.site)
	if err := i.writeFiles(p.file, text); err != nil {
		return nil, err
	}
	b.noteConfig(p.name, strings.ReplaceAll(text, i.site.dir, "."))
	proc, err := pgtest.Program{
		Path: p.path, Args: p.args(filepath.Join(i.site.dir, p.file)), Env: env,
		Dir: i.site.dir, Log: i.site.dir + ".log", As: i.as,
	}.Start()
	if err != nil {
		return nil, err
	}
	i.proc = proc
	if err := i.waitReady(ctx); err != nil {
		return nil, errors.Join(err, i.stop())
	}
	return i, nil
}

// waitReady logs in and asks again and again until there is an answer.
func (i *instance) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("no answer within %s", readyTimeout))
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		conn, err := i.connect(ctx)
		if err == nil {
			_, err = conn.Exec(ctx, "select 1").ReadAll()
			_ = conn.Close(ctx)
		}
		if err == nil {
			return nil
		}
		if gone := i.proc.Alive(); gone != nil {
			return gone
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: last: %w", i.peer.name, context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}

// connect opens one client connection.
func (i *instance) connect(ctx context.Context) (*pgconn.PgConn, error) {
	cfg, err := pgconn.ParseConfig(fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=%s sslmode=disable connect_timeout=20",
		loopback, i.site.port, login, password, database))
	if err != nil {
		return nil, err
	}
	return pgconn.ConnectConfig(ctx, cfg)
}

// stop ends the peer's process, if it has one, and removes its files.
func (i *instance) stop() error {
	if i == nil || i.proc == nil {
		return nil
	}
	return errors.Join(i.proc.Stop(), os.RemoveAll(i.site.dir))
}

// command shows how the peer is started, without folders.
func (p *peer) command() string {
	if p.path == "" {
		return ""
	}
	return strings.Join(append([]string{filepath.Base(p.path)}, p.args(p.file)...), " ")
}
