package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"pgproxy/pgtest"
)

// contender is a peer in one workload.
type contender struct {
	*instance
	row *Row
}

// fail takes the contender out of the workload. The error goes into the report;
// the others go on.
func (c *contender) fail(b *bench, err error) {
	c.row.Error = err.Error()
	b.logf("  %s: %v", c.row.Peer, err)
}

// workload measures one workload with all peers. Its error is one that ends the
// run: ctx has ended.
func (b *bench) workload(ctx context.Context, w Workload) error {
	b.logf("%s", w)
	out := &WorkloadResult{Workload: w, Name: w.String(), Command: b.loadCommand(w)}
	var all []*contender
	defer func() {
		for _, c := range all {
			if err := c.stop(); err != nil && c.row.Error == "" {
				c.fail(b, err)
			}
			if err := b.checkProfile(c, w); err != nil {
				b.logf("  %v", err)
			}
		}
	}()
	for _, p := range b.peers {
		if w.Mode == "prepared" && !p.prepared {
			continue
		}
		c := &contender{row: &Row{Peer: p.name}}
		all = append(all, c)
		out.Rows = append(out.Rows, c.row)
		err := b.enter(ctx, c, p, w)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			c.fail(b, err)
		}
	}
	for r := range b.opt.Rounds {
		for _, i := range order(len(all), r) {
			c := all[i]
			if c.row.Error != "" {
				continue
			}
			round, err := b.round(ctx, c.instance, w)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				c.fail(b, err)
				continue
			}
			c.row.Rounds = append(c.row.Rounds, round)
			b.logf("  round %d: %-10s %9.0f tps  %6.1f us CPU  p50 %.3f ms  p99 %.3f ms", r+1, c.row.Peer,
				round.TPS, round.CPUMicros, round.P50Millis, round.P99Millis)
		}
	}
	for _, c := range all {
		c.noteMemory()
	}
	out.summarize(b.opt.Reference)
	b.result.Workloads = append(b.result.Workloads, out)
	return nil
}

// order is who comes when in a round: each round begins with the next peer.
func order(n, round int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = (i + round) % n
	}
	return out
}

// enter starts a contender, with the pool that suits it, and warms it up.
func (b *bench) enter(ctx context.Context, c *contender, p *peer, w Workload) error {
	pool := b.opt.largestPool()
	if p.tuned && len(b.opt.Pools) > 1 {
		var err error
		if pool, err = b.bestPool(ctx, p, w); err != nil {
			return err
		}
	}
	var env []string
	b.children = w.Clients + 4 // those that come to look as well
	if p.name == PgProxy && b.opt.Profile != "" {
		env = append(env, "PGPROXY_CPUPROFILE="+b.profile(w))
	}
	var err error
	if c.instance, err = b.startPeer(ctx, p, pool, env...); err != nil {
		return err
	}
	if p.path != "" {
		c.row.Pool = pool
	}
	return b.warmUp(ctx, c.instance, w)
}

// warmUp is a second of load that is not counted.
func (b *bench) warmUp(ctx context.Context, i *instance, w Workload) error {
	_, err := runPgbench(ctx, b.pgbench, time.Second+slack, append(w.args(1), address(i.site.port)...)...)
	return err
}

// bestPool tries each pool size for one round and returns that with the most
// transactions a second.
func (b *bench) bestPool(ctx context.Context, p *peer, w Workload) (int, error) {
	best, most := 0, -1.0
	for _, pool := range b.opt.Pools {
		tps, err := b.trial(ctx, p, pool, w)
		if err != nil {
			return 0, fmt.Errorf("trial with a pool of %d: %w", pool, err)
		}
		b.logf("  trial: %s with a pool of %d: %.0f tps", p.name, pool, tps)
		if tps > most {
			best, most = pool, tps
		}
	}
	return best, nil
}

func (b *bench) trial(ctx context.Context, p *peer, pool int, w Workload) (tps float64, err error) {
	i, err := b.startPeer(ctx, p, pool)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, i.stop()) }()
	if err := b.warmUp(ctx, i, w); err != nil {
		return 0, err
	}
	r, err := b.round(ctx, i, w)
	return r.TPS, err
}

// round loads one peer once.
func (b *bench) round(ctx context.Context, i *instance, w Workload) (Round, error) {
	prefix := filepath.Join(b.dir, "log")
	args := slices.Concat(w.args(b.opt.Seconds), logArgs(prefix, b.opt.Sample), address(i.site.port))
	before, err := i.cpuTime()
	if err != nil {
		return Round{}, err
	}
	text, err := runPgbench(ctx, b.pgbench, time.Duration(b.opt.Seconds)*time.Second+slack, args...)
	if err != nil {
		return Round{}, errors.Join(err, i.died(), removeLogs(prefix))
	}
	after, err := i.cpuTime()
	if err != nil {
		return Round{}, err
	}
	s, err := parseSummary(text)
	if err != nil {
		return Round{}, err
	}
	if s.failed > 0 {
		return Round{}, fmt.Errorf("%d of %d transactions failed", s.failed, s.failed+s.transactions)
	}
	latencies, err := readLogs(prefix)
	if err != nil {
		return Round{}, err
	}
	return Round{
		TPS:          s.tps,
		Transactions: s.transactions,
		CPUMicros:    float64((after - before).Microseconds()) / float64(s.transactions),
		P50Millis:    float64(percentile(latencies, 50)) / 1000,
		P99Millis:    float64(percentile(latencies, 99)) / 1000,
	}, nil
}

// cpuTime is that of the peer's process so far; 0 without one.
func (i *instance) cpuTime() (time.Duration, error) {
	if i.proc == nil {
		return 0, nil
	}
	if err := i.proc.Alive(); err != nil {
		return 0, err
	}
	if i.peer.family {
		return familyTime(i.proc.PID())
	}
	return cpuTime(i.proc.PID())
}

// died tells how the peer's process ended, nil if it runs.
func (i *instance) died() error {
	if i.proc == nil {
		return nil
	}
	return i.proc.Alive()
}

// noteMemory notes the resident memory at the end of the last round.
func (c *contender) noteMemory() {
	if c.instance == nil || c.proc == nil || c.row.Error != "" {
		return
	}
	if n, err := pgtest.ResidentMemory(c.proc.PID()); err == nil {
		c.row.ResidentBytes = n
	}
}

// removeLogs removes what a run that failed has left.
func removeLogs(prefix string) error {
	names, err := filepath.Glob(prefix + ".*")
	for _, name := range names {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

// profile is the file for pgproxy's CPU profile of a workload.
func (b *bench) profile(w Workload) string {
	return filepath.Join(b.opt.Profile, w.file()+".pprof")
}

// checkProfile complains if pgproxy, which has ended, wrote no profile.
func (b *bench) checkProfile(c *contender, w Workload) error {
	if b.opt.Profile == "" || c.row.Peer != PgProxy || c.instance == nil {
		return nil
	}
	if st, err := os.Stat(b.profile(w)); err != nil || st.Size() == 0 {
		return fmt.Errorf("pgproxy wrote no CPU profile to %s", b.profile(w))
	}
	return nil
}
