package compat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pgproxy/pgtest"
)

// binaryTimeout bounds the tests of one package in one way.
const binaryTimeout = 10 * time.Minute

// compat is one comparison.
type compat struct {
	// set at construction
	opt       Options
	cluster   *pgtest.Cluster
	dir       string // inside the cluster's folder, and removed with it
	pgproxy   string // program
	test2json string // program
	progress  io.Writer
	suites    []suite
	binaries  [][]binary // of each suite
	result    *Result
}

// Run starts a cluster, runs what the options ask for, and ends everything that
// it started; it does that as well when ctx ends. One line for each step goes to
// progress. The result is nil if not all ways have run.
func Run(ctx context.Context, opt Options, progress io.Writer) (*Result, error) {
	var chosen []suite
	for _, s := range suites {
		if len(opt.Suites) == 0 || slices.Contains(opt.Suites, s.name) {
			chosen = append(chosen, s)
		}
	}
	return run(ctx, opt, chosen, progress)
}

func run(ctx context.Context, opt Options, chosen []suite, progress io.Writer) (res *Result, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, opt.Timeout, fmt.Errorf("not done within %s", opt.Timeout))
	defer cancel()
	accepted, err := readExceptions(opt.Exceptions)
	if err != nil {
		return nil, err
	}
	c, err := pgtest.StartCluster(ctx, pgtest.Options{Replicas: 2, Log: progress})
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		err = errors.Join(err, c.Close(ctx))
	}()
	r := &compat{
		opt: opt, cluster: c, dir: filepath.Join(c.Dir, "compat"), progress: progress, suites: chosen,
		result: newResult(opt, accepted),
	}
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	for _, way := range append([]string{Direct}, opt.Ways...) {
		if err := r.way(ctx, way); err != nil {
			return nil, fmt.Errorf("%s: %w", way, err)
		}
	}
	return r.result, nil
}

// prepare finds and compiles programs and makes the roles.
func (r *compat) prepare(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(r.dir, "tmp"), 0o755); err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "tmp", ".pgpass"), []byte(pgpass), 0o600); err != nil {
		return fmt.Errorf("pgpass: %w", err)
	}
	if r.opt.Out != "" {
		if err := os.MkdirAll(r.opt.Out, 0o755); err != nil {
			return fmt.Errorf("-out: %w", err)
		}
	}
	out, err := goCommand(ctx, "", nil, "tool", "-n", "test2json")
	if err != nil {
		return err
	}
	r.test2json = strings.TrimSpace(string(out))
	if r.pgproxy = r.opt.PgProxy; r.pgproxy == "" {
		r.logf("building pgproxy")
		r.pgproxy = filepath.Join(r.dir, "pgproxy")
		if _, err := goCommand(ctx, "", nil, "build", "-o", r.pgproxy, "pgproxy/cmd/pgproxy"); err != nil {
			return err
		}
	}
	compiled := make(map[string][]binary) // by module
	for _, s := range r.suites {
		bins, there := compiled[s.module]
		if !there {
			m, err := source(ctx, s)
			if err != nil {
				return err
			}
			r.logf("compiling the tests of %s %s", m.Path, m.Version)
			if bins, err = compile(ctx, m, filepath.Join(r.dir, s.name)); err != nil {
				return err
			}
			compiled[s.module] = bins
			r.result.Modules = append(r.result.Modules, strings.TrimSpace(m.Path+" "+m.Version))
		}
		if len(r.opt.Packages) > 0 {
			bins = slices.DeleteFunc(slices.Clone(bins), func(b binary) bool { return !slices.Contains(r.opt.Packages, b.name) })
		}
		r.binaries = append(r.binaries, bins)
	}
	return r.prepareServers(ctx)
}

// prepareServers opens the servers to all the ways of logging in that the suites
// try, and makes the roles.
func (r *compat) prepareServers(ctx context.Context) error {
	if err := r.cluster.Exec(ctx, "ALTER SYSTEM SET unix_socket_directories = "+pgtest.QuoteLiteral(r.cluster.Dir)); err != nil {
		return err
	}
	for _, n := range r.cluster.Nodes() {
		if err := os.WriteFile(filepath.Join(n.Dir, "pg_hba.conf"), []byte(hba), 0o600); err != nil {
			return fmt.Errorf("pg_hba.conf: %w", err)
		}
		if err := n.Signal(syscall.SIGHUP); err != nil {
			return err
		}
	}
	if err := r.cluster.Primary.Restart("fast"); err != nil {
		return err
	}
	for _, l := range r.logins() {
		encryption := "scram-sha-256"
		if l.md5 {
			encryption = "md5"
		}
		err := r.cluster.Exec(ctx, "SET password_encryption = '"+encryption+"'; CREATE ROLE "+pgtest.QuoteIdent(l.name)+
			" LOGIN "+l.attributes+" PASSWORD "+pgtest.QuoteLiteral(l.password))
		if err != nil {
			return err
		}
	}
	version, err := r.cluster.Query(ctx, "SHOW server_version")
	if err == nil {
		r.result.Server = version[0][0]
	}
	return err
}

// logins are those of all suites that run, each once.
func (r *compat) logins() []login {
	var out []login
	for _, s := range r.suites {
		for _, l := range s.logins {
			if !slices.Contains(out, l) {
				out = append(out, l)
			}
		}
	}
	return out
}

// databases makes the suites' databases anew.
func (r *compat) databases(ctx context.Context) error {
	done := make(map[string]bool)
	for _, s := range r.suites {
		if done[s.database] {
			continue
		}
		done[s.database] = true
		name := pgtest.QuoteIdent(s.database)
		for _, sql := range []string{"DROP DATABASE IF EXISTS " + name + " WITH (FORCE)", "CREATE DATABASE " + name + " OWNER " + pgtest.QuoteIdent(s.owner)} {
			if err := r.cluster.Exec(ctx, sql); err != nil {
				return err
			}
		}
		for _, sql := range s.setup {
			if err := r.cluster.Primary.Exec(ctx, s.database, sql); err != nil {
				return err
			}
		}
	}
	return r.cluster.WaitCaughtUp(ctx)
}

// way runs all suites in one way.
func (r *compat) way(ctx context.Context, way string) (err error) {
	if err := r.databases(ctx); err != nil {
		return err
	}
	t := target{port: r.cluster.Primary.Port, socket: r.cluster.Dir}
	if way != Direct {
		p, err := r.startProxy(ctx, way)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.stopProxy(p)) }()
		t = p.target
	}
	for i, s := range r.suites {
		began := time.Now()
		o := newOutcome(filepath.Join(r.dir, "tmp"))
		for _, b := range r.binaries[i] {
			if err := r.binary(ctx, o, b, s.env(t), r.opt.Run, r.opt.Count); err != nil {
				return err
			}
		}
		if way != Direct {
			if err := r.again(ctx, s, way, o, r.binaries[i], s.env(t)); err != nil {
				return err
			}
		}
		r.logf("%s, %s: %d passed, %d skipped, %d failed in %s", s.name, way, o.count("pass"), o.count("skip"), o.count("fail"),
			time.Since(began).Round(time.Second))
		r.result.add(s.name, way, o)
		if err := r.keep(s.name+"-"+way+".txt", o.text()); err != nil {
			return err
		}
	}
	return nil
}

// again runs tests that failed only in this way once more, alone: many have limits
// of some ten milliseconds, which a busy machine breaks now and then. Those that
// pass every time are noted as unsteady. More than a few failures are none of that
// kind.
func (r *compat) again(ctx context.Context, s suite, way string, o *outcome, bins []binary, env []string) error {
	const few, times = 8, 5
	failed := r.result.notAccepted(s.name, way, o)
	if len(failed) > few {
		return nil
	}
	for _, name := range failed {
		i := slices.IndexFunc(bins, func(b binary) bool { return strings.HasPrefix(name, b.name+".") })
		if i < 0 || o.status[name] != "fail" {
			continue
		}
		top, _, _ := strings.Cut(strings.TrimPrefix(name, bins[i].name+"."), "/")
		alone := newOutcome(filepath.Join(r.dir, "tmp"))
		// lib/pq ends with a failure of its own where all tests pass and connections of
		// its name are left, as a pool's are.
		err := r.binary(ctx, alone, bins[i], env, "^"+regexp.QuoteMeta(top)+"$", times)
		if err != nil && !errors.Is(err, errNoTest) {
			return err
		}
		if alone.status[name] == "pass" {
			o.forgive(name)
		}
	}
	return nil
}

// binary runs the tests of one package that match a pattern, each so many times.
func (r *compat) binary(ctx context.Context, o *outcome, b binary, env []string, pattern string, count int) error {
	tmp := filepath.Join(r.dir, "tmp")
	args := []string{"-test.timeout=" + binaryTimeout.String(), "-test.count=" + strconv.Itoa(count)}
	if pattern != "" {
		args = append(args, "-test.run="+pattern)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, binaryTimeout+30*time.Second, fmt.Errorf("tests of %s: not done within %s", b.name, binaryTimeout))
	defer cancel()
	return o.testBinary(ctx, b, r.test2json, append(pgtest.ChildEnv("HOME="+tmp, "TMPDIR="+tmp), env...), args)
}

// keep writes a file into the folder that -out names, if it does.
func (r *compat) keep(name, text string) error {
	if r.opt.Out == "" {
		return nil
	}
	return os.WriteFile(filepath.Join(r.opt.Out, name), []byte(text), 0o644)
}

func (r *compat) logf(format string, args ...any) {
	fmt.Fprintf(r.progress, format+"\n", args...)
}
