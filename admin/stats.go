package admin

import (
	"context"
	"time"
)

// Index of each number in counts, in the order of PgBouncer's tables. Times are
// microseconds.
const (
	countAssigned = iota
	countXacts
	countQueries
	countReceived
	countSent
	countXactTime
	countQueryTime
	countWaitTime
	countClientParses
	countServerParses
	countBinds
	countAll
)

// counts is what a database has done since the start, or on average.
type counts [countAll]uint64

func (c *counts) add(o *counts) {
	for i, n := range o {
		c[i] += n
	}
}

// average is what happened between two samples: a number for each second, but
// times for each transaction, query and assignment, as in PgBouncer.
func (c *counts) average(old *counts, d time.Duration) (avg counts) {
	us := uint64(max(d, 0) / time.Microsecond)
	if us == 0 {
		return avg
	}
	var delta counts
	for i := range c {
		if c[i] > old[i] { // a pool that is no more takes its counts with it
			delta[i] = c[i] - old[i]
		}
		avg[i] = uint64(float64(delta[i]) * 1e6 / float64(us))
	}
	for i, of := range map[int]int{countXactTime: countXacts, countQueryTime: countQueries, countWaitTime: countAssigned} {
		avg[i] = 0
		if delta[of] > 0 {
			avg[i] = delta[i] / delta[of]
		}
	}
	return avg
}

// totals sums the pools of each database, and counts the console as one.
func (c *Console) totals() map[string]counts {
	m := make(map[string]counts)
	us := func(d time.Duration) uint64 { return uint64(max(d, 0) / time.Microsecond) }
	for _, st := range c.opt.Pools.Stats() {
		n := &st.Counters
		sum := m[st.Key.Database]
		sum.add(&counts{
			st.Assigned, n.Xacts, n.Queries, n.Received, n.Sent, us(n.XactTime.Sum), us(n.QueryTime.Sum), us(st.Wait.Sum),
			n.ClientParses, n.ServerParses, n.Binds,
		})
		m[st.Key.Database] = sum
	}
	own := m[ownName]
	q := c.queries.Load()
	own.add(&counts{countXacts: q, countQueries: q, countReceived: c.received.Load(), countSent: c.sent.Load()})
	m[ownName] = own
	return m
}

// sample is the totals at one moment.
type sample struct {
	at     time.Time
	totals map[string]counts
}

func (c *Console) take(now time.Time) sample { return sample{now, c.totals()} }

// periodAverages returns the averages of the last complete period, by database.
// The map must not be changed.
func (c *Console) periodAverages() map[string]counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.averages
}

// sampler takes a sample each stats_period. It ends with ctx.
func (c *Console) sampler(ctx context.Context) {
	defer c.goes.Done()
	for {
		d := c.opt.Server.Settings().Config.Proxy.StatsPeriod
		if d <= 0 {
			d = time.Minute
		}
		t := time.NewTimer(d)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
			c.endPeriod(time.Now())
		}
	}
}

// endPeriod makes the averages since the last sample, and logs their sum.
func (c *Console) endPeriod(now time.Time) {
	next := c.take(now)
	c.mu.Lock()
	last := c.sample
	avg := make(map[string]counts, len(next.totals))
	d := next.at.Sub(last.at)
	var was, is counts
	for db, n := range next.totals {
		old := last.totals[db]
		avg[db] = n.average(&old, d)
		if db != ownName {
			was.add(&old)
			is.add(&n)
		}
	}
	c.sample, c.averages = next, avg
	c.mu.Unlock()
	sum := is.average(&was, d)
	c.log.Info("stats", "xacts_per_s", sum[countXacts], "queries_per_s", sum[countQueries], "client_parses_per_s", sum[countClientParses],
		"server_parses_per_s", sum[countServerParses], "binds_per_s", sum[countBinds], "in_bytes_per_s", sum[countReceived],
		"out_bytes_per_s", sum[countSent], "xact_us", sum[countXactTime], "query_us", sum[countQueryTime], "wait_us", sum[countWaitTime])
}
