package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// The superuser of every cluster. Its password is no secret: the servers listen
// on 127.0.0.1 for as long as a test lasts.
const (
	Superuser         = "postgres"
	SuperuserPassword = "pgtest"
)

// Options says what StartCluster starts.
type Options struct {
	Replicas       int               // hot standbys, 0 to 8
	Version        string            // major version, "" = as FindBin says
	Settings       map[string]string // added to postgresql.conf of every node, in front of the defaults here
	Dir            string            // parent folder, "" = the system's folder for temporary files
	Log            io.Writer         // progress in one line for each step; nil = none
	MaxConnections int               // 0 = 200
}

// Cluster is a primary and its hot standbys, all on 127.0.0.1. Its methods may
// be called from any goroutine.
type Cluster struct {
	// set at start
	Primary   *Node   // the node that started as primary; Promote changes no field
	Replicas  []*Node // those that started as its standbys
	Superuser string  // superuser, password SuperuserPassword
	Password  string
	Dir       string // everything that the cluster has on disk
	BinDir    string // initdb, postgres, pgbench ... of its version

	opt      Options
	account  account
	watchdog *watchdog
	ports    []*port // of the nodes, in their order; set before the first of them starts

	closing  sync.Once
	closeErr error

	// guarded by mu
	mu        sync.Mutex
	passwords map[string]string // by role, for DSN
}

// Start starts a cluster for one test and closes it at the test's end. A test
// that fails gets the last lines of the server logs.
func Start(t testing.TB, opt Options) *Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := StartCluster(ctx, opt)
	if err != nil {
		t.Fatalf("starting a PostgreSQL cluster: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range c.Nodes() {
				t.Logf("end of the log of %s:\n%s", n.Name, n.LogTail(4096))
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Errorf("closing the PostgreSQL cluster: %v", err)
		}
	})
	return c
}

// StartCluster starts a cluster and returns when every node takes connections
// and every replica streams and has caught up. It must be closed with Close; if
// the process dies first, even by SIGKILL, the servers end by themselves and the
// folder is removed within a few seconds. When ctx ends during the start nothing
// is left behind.
func StartCluster(ctx context.Context, opt Options) (*Cluster, error) {
	for tries := 1; ; tries++ {
		c, err := startCluster(ctx, opt)
		if err == nil || tries == 3 || !strings.Contains(err.Error(), "Address already in use") {
			return c, err
		}
		// Between the choice of a port and the server's start somebody who claims
		// none has taken it: others are chosen.
	}
}

func startCluster(ctx context.Context, opt Options) (*Cluster, error) {
	if opt.Replicas < 0 || opt.Replicas > 8 {
		return nil, fmt.Errorf("replicas: %d, want 0 to 8", opt.Replicas)
	}
	if opt.MaxConnections == 0 {
		opt.MaxConnections = 200
	}
	bin, err := FindBin(opt.Version)
	if err != nil {
		return nil, err
	}
	acc, err := serverAccount()
	if err != nil {
		return nil, err
	}
	dir, err := makeFolder(opt.Dir, acc)
	if err != nil {
		return nil, err
	}
	dog, err := startWatchdog(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	c := &Cluster{
		Superuser: Superuser,
		Password:  SuperuserPassword,
		Dir:       dir,
		BinDir:    bin,
		opt:       opt,
		account:   acc,
		watchdog:  dog,
		passwords: map[string]string{Superuser: SuperuserPassword},
	}
	if err := c.start(ctx); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return nil, errors.Join(err, c.Close(ctx))
	}
	return c, nil
}

// makeFolder makes the folder of a cluster or template, owned by acc.
func makeFolder(parent string, acc account) (string, error) {
	dir, err := os.MkdirTemp(parent, "pgproxy-cluster-*")
	if err != nil {
		return "", fmt.Errorf("cluster folder: %w", err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", fmt.Errorf("cluster folder: %w", err)
	}
	if err = acc.reachable(dir); err == nil {
		err = acc.own(dir)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("cluster folder: %w", err), os.RemoveAll(dir))
	}
	return dir, nil
}

func (c *Cluster) start(ctx context.Context) error {
	began := time.Now()
	ports, err := takePorts(1 + c.opt.Replicas)
	if err != nil {
		return err
	}
	c.ports = ports
	c.Primary = newNode(c, "primary", ports[0])
	for i := 1; i <= c.opt.Replicas; i++ {
		c.Replicas = append(c.Replicas, newNode(c, "replica"+strconv.Itoa(i), ports[i]))
	}
	c.logf("preparing %d PostgreSQL servers in %s", len(ports), c.Dir)
	if err := c.prepare(ctx); err != nil {
		return err
	}
	// A replica asks again every 100 ms, so it may well start first.
	g, gctx := errgroup.WithContext(ctx)
	for i, n := range c.Nodes() {
		g.Go(func() error {
			ports[i].release()
			return n.launch(gctx)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, n := range c.Replicas {
		if err := n.WaitCaughtUp(ctx); err != nil {
			return err
		}
	}
	c.logf("primary on port %d and %d streaming replicas after %s", c.Primary.Port, len(c.Replicas),
		time.Since(began).Round(10*time.Millisecond))
	return nil
}

// prepare makes the data folders. A freshly made database that was shut down
// cleanly may be copied as it is: the copies are standbys that are merely
// behind, so no base backup is needed.
func (c *Cluster) prepare(ctx context.Context) error {
	source := ""
	if testing.Testing() {
		var err error
		if source, err = template(ctx, c.BinDir, c.account); err != nil {
			return err
		}
		if err := c.copyData(ctx, source, c.Primary.Dir); err != nil {
			return err
		}
	} else {
		if err := initdb(ctx, c.BinDir, c.account, c.Primary.Dir); err != nil {
			return err
		}
		source = c.Primary.Dir
	}
	for _, n := range c.Replicas {
		if err := c.copyData(ctx, source, n.Dir); err != nil {
			return err
		}
		if err := n.follow(c.Primary); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes() {
		if err := n.writeConfig(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) copyData(ctx context.Context, from, to string) error {
	if err := runProgram(ctx, c.account, c.Dir, nil, "cp", "-R", "-p", from, to); err != nil {
		return fmt.Errorf("copying the database: %w", err)
	}
	return nil
}

// Nodes returns the primary and the replicas in the order of their names.
func (c *Cluster) Nodes() []*Node {
	if c.Primary == nil {
		return nil
	}
	return append([]*Node{c.Primary}, c.Replicas...)
}

// CreateRole makes a role that may log in, with this password, on the primary,
// and remembers the password for DSN. Attributes are SQL words such as
// "SUPERUSER" or "REPLICATION", or empty.
func (c *Cluster) CreateRole(ctx context.Context, name, password, attributes string) error {
	sql := "CREATE ROLE " + QuoteIdent(name) + " LOGIN " + attributes + " PASSWORD " + QuoteLiteral(password)
	if err := c.Exec(ctx, sql); err != nil {
		return err
	}
	c.SetPassword(name, password)
	return nil
}

// SetPassword tells DSN the password of a role that was made in another way.
func (c *Cluster) SetPassword(role, password string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.passwords[role] = password
}

// Exec runs statements on the primary in database postgres as superuser.
func (c *Cluster) Exec(ctx context.Context, sql string) error {
	return c.Primary.Exec(ctx, "postgres", sql)
}

// Query runs statements on the primary in database postgres as superuser and
// returns the rows of the last result as text; NULL is "".
func (c *Cluster) Query(ctx context.Context, sql string) ([][]string, error) {
	return c.Primary.Query(ctx, "postgres", sql)
}

// WaitCaughtUp waits until every running replica has replayed what the primary
// had written when it was called.
func (c *Cluster) WaitCaughtUp(ctx context.Context) error {
	for _, n := range c.Replicas {
		if !n.Running() {
			continue
		}
		if err := n.WaitCaughtUp(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Close ends every server at once (as a crash would, without a checkpoint) and
// removes the folder. It may be called more than once. When ctx ends first the
// servers are killed. An error says what could not be removed.
func (c *Cluster) Close(ctx context.Context) error {
	c.closing.Do(func() {
		var g errgroup.Group
		for _, n := range c.Nodes() {
			g.Go(func() error { return n.end(ctx) })
		}
		err := g.Wait()
		for _, p := range c.ports {
			p.giveUp()
		}
		err = errors.Join(err, os.RemoveAll(c.Dir))
		c.watchdog.release(err == nil)
		c.closeErr = err
	})
	return c.closeErr
}

func (c *Cluster) logf(format string, args ...any) {
	if c.opt.Log != nil {
		fmt.Fprintf(c.opt.Log, format+"\n", args...)
	}
}

// dsn is a connection string that libpq and pgx understand.
func (c *Cluster) dsn(host string, port int, db, user string) string {
	c.mu.Lock()
	password, ok := c.passwords[user]
	c.mu.Unlock()
	u := url.URL{
		Scheme:   "postgres",
		Host:     host + ":" + strconv.Itoa(port),
		Path:     "/" + db,
		RawQuery: "sslmode=disable",
		User:     url.User(user),
	}
	if ok {
		u.User = url.UserPassword(user, password)
	}
	return u.String()
}

// QuoteIdent quotes a name for use in SQL.
func QuoteIdent(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// QuoteLiteral quotes a string for use in SQL, whatever
// standard_conforming_strings says.
func QuoteLiteral(s string) string {
	q := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		q = " E" + strings.ReplaceAll(q, `\`, `\\`)
	}
	return q
}
