package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"pgproxy/pgtest"
)

// slack is what a run of pgbench may take beyond its seconds: connecting, and
// the end of the last transactions.
const slack = 60 * time.Second

// bench is one comparison.
type bench struct {
	// set at construction
	opt      Options
	cluster  *pgtest.Cluster
	dir      string              // inside the cluster's folder, and removed with it
	pgbench  string              // program
	as       *syscall.Credential // of peers that refuse root; nil = ourselves
	progress io.Writer
	peers    []*peer
	result   *Result

	serial   int // of the instances so far
	children int // see site
}

// Run starts a cluster, measures what the options ask for, and ends everything
// that it started; it does that as well when ctx ends. One line for each step
// goes to progress. The result holds what was measured, even with an error: it is
// nil only if nothing was.
func Run(ctx context.Context, opt Options, progress io.Writer) (res *Result, err error) {
	if err := raiseOpenFiles(max(opt.Idle, opt.maxConnections()) + 500); err != nil {
		return nil, err
	}
	c, err := pgtest.StartCluster(ctx, pgtest.Options{
		Replicas: opt.Replicas, Log: progress, MaxConnections: opt.maxConnections(),
		Settings: map[string]string{"shared_buffers": "256MB"},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		err = errors.Join(err, c.Close(ctx))
	}()
	return measure(ctx, c, opt, progress)
}

// measure is Run on a cluster that is there, in which it leaves a role and a
// database.
func measure(ctx context.Context, c *pgtest.Cluster, opt Options, progress io.Writer) (*Result, error) {
	b := &bench{opt: opt, cluster: c, progress: progress, dir: filepath.Join(c.Dir, "bench")}
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	if n := len(b.opt.workloads()); n > 0 {
		b.logf("%d workloads, %d peers, about %s", n, len(b.peers), b.opt.guess(len(b.peers)))
	}
	err := b.all(ctx)
	if len(b.result.Workloads)+len(b.result.Idle) == 0 {
		return nil, err
	}
	return b.result, err
}

// all measures everything until ctx ends.
func (b *bench) all(ctx context.Context) error {
	for _, w := range b.opt.workloads() {
		if err := b.workload(ctx, w); err != nil {
			return err
		}
	}
	if b.opt.Idle > 0 {
		return b.idle(ctx)
	}
	return nil
}

// prepare finds the programs and fills the database.
func (b *bench) prepare(ctx context.Context) error {
	if err := os.Mkdir(b.dir, 0o711); err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	var err error
	if b.as, err = ownerOf(b.cluster.Dir); err != nil {
		return err
	}
	if b.pgbench, err = findPgbench(b.cluster.BinDir); err != nil {
		return err
	}
	if b.opt.Profile != "" {
		if b.opt.Profile, err = filepath.Abs(b.opt.Profile); err != nil {
			return fmt.Errorf("-profile: %w", err)
		}
		if err := os.MkdirAll(b.opt.Profile, 0o755); err != nil {
			return fmt.Errorf("-profile: %w", err)
		}
	}
	if err := b.findPeers(ctx); err != nil {
		return err
	}
	if err := b.fill(ctx); err != nil {
		return err
	}
	b.result, err = b.newResult(ctx)
	return err
}

// findPgbench prefers the one beside the server's programs.
func findPgbench(dir string) (string, error) {
	path, err := program(filepath.Join(dir, "pgbench"))
	if err != nil {
		path, err = program("pgbench")
	}
	if err != nil {
		return "", fmt.Errorf("pgbench: %w: it comes with the PostgreSQL server (postgresql-contrib on some systems)", err)
	}
	return path, nil
}

// findPeers lists the peers in the order of the report. A peer that is missing is
// an error only if it was asked for by name, or is pgproxy.
func (b *bench) findPeers(ctx context.Context) error {
	if b.opt.PgProxy == "" && (b.opt.wants(PgProxy) || b.opt.wants(Unsplit)) {
		b.logf("building pgproxy")
		b.opt.PgProxy = filepath.Join(b.dir, "pgproxy")
		if err := build(ctx, b.opt.PgProxy); err != nil {
			return err
		}
	}
	finders := map[string]func() (*peer, error){
		PgProxy:   func() (*peer, error) { return pgproxyPeer(ctx, PgProxy, b.opt.PgProxy) },
		Unsplit:   func() (*peer, error) { return pgproxyPeer(ctx, Unsplit, b.opt.PgProxy) },
		Base:      func() (*peer, error) { return pgproxyPeer(ctx, Base, b.opt.Base) },
		PgBouncer: func() (*peer, error) { return pgbouncerPeer(ctx, b.opt.PgBouncer) },
		Pgpool:    func() (*peer, error) { return pgpoolPeer(ctx) },
	}
	for _, name := range peerNames {
		find := finders[name]
		if find == nil || !b.opt.wants(name) {
			continue
		}
		p, err := find()
		switch {
		case errors.Is(err, errNotFound) && len(b.opt.Peers) == 0:
			b.logf("%v", err)
		case err != nil:
			return err
		default:
			b.peers = append(b.peers, p)
		}
	}
	if b.opt.wants(Direct) && b.opt.Rounds > 0 {
		b.peers = append(b.peers, directPeer())
	}
	if len(b.peers) == 0 {
		return errors.New("no peer to measure")
	}
	return nil
}

// fill makes the role and the database with pgbench's tables.
func (b *bench) fill(ctx context.Context) error {
	b.logf("filling the database, scale %d", b.opt.Scale)
	// pg_monitor: the proxies' health checks may ask what a plain role may not.
	if err := b.cluster.CreateRole(ctx, login, password, "IN ROLE pg_monitor"); err != nil {
		return err
	}
	if err := b.cluster.Exec(ctx, "CREATE DATABASE "+database+" OWNER "+login); err != nil {
		return err
	}
	args := append([]string{"-i", "-q", "-s", fmt.Sprint(b.opt.Scale)}, address(b.cluster.Primary.Port)...)
	if _, err := runPgbench(ctx, b.pgbench, time.Minute+time.Duration(b.opt.Scale)*10*time.Second, args...); err != nil {
		return err
	}
	if err := b.cluster.Exec(ctx, "CHECKPOINT"); err != nil {
		return err
	}
	return b.cluster.WaitCaughtUp(ctx)
}

func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(b.progress, format+"\n", args...)
}
