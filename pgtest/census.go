package pgtest

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// censusPatience is how long what a test leaves may take to go.
const censusPatience = 10 * time.Second

// Census counts what tests tend to leave behind: goroutines and open file
// descriptors of this process, and client sessions on PostgreSQL servers. Take it
// when servers and fixtures that outlive the check are up:
//
//	census := pgtest.NewCensus(t, cluster.Nodes()...)
//	... start the proxy, run the test, stop the proxy ...
//	census.AssertBaseline()
//
// It sees the whole process, so it does not suit parallel tests.
type Census struct {
	t        testing.TB
	nodes    []*Node
	patience time.Duration
	base     count
}

// count is one look at everything.
type count struct {
	goroutines map[string]int // how many, by the function that runs at the bottom and who made it
	total      int            // goroutines
	fds        []string       // what open descriptors stand for
	sessions   map[string][]session
}

// session is a client session on a server, as pg_stat_activity has it.
type session struct {
	pid, state, wait, application, query string
}

func (s session) String() string {
	return fmt.Sprintf("pid %s, %s, waiting for %s, application %q, query %q", s.pid, s.state, s.wait, s.application, s.query)
}

// NewCensus counts now.
func NewCensus(t testing.TB, nodes ...*Node) *Census {
	t.Helper()
	c := &Census{t: t, nodes: nodes, patience: censusPatience}
	base, err := c.count()
	if err != nil {
		t.Fatalf("census: %v", err)
	}
	c.base = base
	return c
}

// AssertBaseline waits up to 10 s until no more goroutines, descriptors and
// server sessions exist than at the census, and fails the test with what is too
// many.
func (c *Census) AssertBaseline() {
	c.t.Helper()
	c.await(func(now count) string { return c.base.surplus(now) })
}

// AssertQuiet is for a proxy that still runs and keeps its server connections:
// it waits up to 10 s until no session that was not there at the census runs a
// statement, waits for the rest of a message, or is in a transaction.
func (c *Census) AssertQuiet() {
	c.t.Helper()
	c.await(func(now count) string {
		var b strings.Builder
		for _, n := range c.nodes {
			for _, s := range newSessions(c.base.sessions[n.Name], now.sessions[n.Name]) {
				if s.state != "idle" {
					fmt.Fprintf(&b, "%s: session that is not idle: %s\n", n.Name, s)
				}
			}
		}
		return b.String()
	})
}

// await counts until complaint says nothing, and fails the test with what it
// said last.
func (c *Census) await(complaint func(count) string) {
	c.t.Helper()
	deadline := time.Now().Add(c.patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		now, err := c.count()
		if err != nil {
			c.t.Errorf("census: %v", err)
			return
		}
		said := complaint(now)
		if said == "" {
			return
		}
		if time.Now().After(deadline) {
			c.t.Errorf("census: after %s there is still\n%s", c.patience, said)
			return
		}
		<-tick.C
	}
}

func (c *Census) count() (count, error) {
	now := count{sessions: make(map[string][]session)}
	for _, n := range c.nodes {
		if !n.Running() {
			continue
		}
		list, err := sessionsOf(n)
		if err != nil {
			return now, err
		}
		now.sessions[n.Name] = list
	}
	var err error
	if now.fds, err = openDescriptors(); err != nil {
		return now, err
	}
	now.goroutines, now.total = goroutineKinds()
	return now, nil
}

// surplus says what now has more than c.
func (c count) surplus(now count) string {
	var b strings.Builder
	if now.total > c.total {
		fmt.Fprintf(&b, "%d goroutines, %d at the start; more of:\n", now.total, c.total)
		for _, kind := range slices.Sorted(maps.Keys(now.goroutines)) {
			if more := now.goroutines[kind] - c.goroutines[kind]; more > 0 {
				fmt.Fprintf(&b, "  %d x %s\n", more, kind)
			}
		}
	}
	if len(now.fds) > len(c.fds) {
		fmt.Fprintf(&b, "%d open descriptors, %d at the start; new: %s\n", len(now.fds), len(c.fds),
			strings.Join(without(now.fds, c.fds), ", "))
	}
	for _, node := range slices.Sorted(maps.Keys(now.sessions)) {
		if len(now.sessions[node]) > len(c.sessions[node]) {
			fmt.Fprintf(&b, "%d client sessions on %s, %d at the start; new:\n", len(now.sessions[node]), node, len(c.sessions[node]))
			for _, s := range newSessions(c.sessions[node], now.sessions[node]) {
				fmt.Fprintf(&b, "  %s\n", s)
			}
		}
	}
	return b.String()
}

func newSessions(before, now []session) []session {
	return slices.DeleteFunc(slices.Clone(now), func(s session) bool {
		return slices.ContainsFunc(before, func(o session) bool { return o.pid == s.pid })
	})
}

func without(all, known []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(known, s) })
}

// sessionsOf lists the client sessions of a server but for the one that asks
// and other ones of this package that are just ending.
func sessionsOf(n *Node) ([]session, error) {
	ctx, cancel := context.WithTimeout(context.Background(), censusPatience)
	defer cancel()
	rows, err := n.Query(ctx, "postgres", `SELECT pid, coalesce(state, ''), coalesce(wait_event, ''), application_name, left(query, 200)
		FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
		AND application_name <> 'pgtest' ORDER BY backend_start, pid`)
	if err != nil {
		return nil, err
	}
	var out []session
	for _, r := range rows {
		out = append(out, session{r[0], r[1], r[2], r[3], r[4]})
	}
	return out, nil
}

// openDescriptors names what the process's open descriptors stand for, without
// the one that reads the list.
func openDescriptors() ([]string, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open descriptors: %w", err)
	}
	var out []string
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // the descriptor of this very list
		}
		out = append(out, e.Name()+" "+target)
	}
	return out, nil
}

// goroutineKinds counts goroutines by the function that they run.
func goroutineKinds() (map[string]int, int) {
	buf := make([]byte, 1<<16)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	kinds := make(map[string]int)
	total := 0
	for stack := range strings.SplitSeq(strings.TrimSpace(string(buf)), "\n\n") {
		kinds[goroutineKind(stack)]++
		total++
	}
	return kinds, total
}

// goroutineKind condenses one goroutine of a stack dump: the function at its
// bottom and the line that it stands at there.
func goroutineKind(stack string) string {
	lines := strings.Split(stack, "\n")
	bottom := len(lines)
	for i, l := range lines {
		if strings.HasPrefix(l, "created by ") {
			bottom = i
		}
	}
	if bottom < 3 {
		return lines[0]
	}
	name := lines[bottom-2]
	if i := strings.LastIndexByte(name, '('); i > 0 {
		name = name[:i]
	}
	at, _, _ := strings.Cut(strings.TrimSpace(lines[bottom-1]), " ")
	return name + " at " + filepath.Base(at)
}

// ResidentMemory returns the resident memory of a process in bytes.
func ResidentMemory(pid int) (int64, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0, fmt.Errorf("resident memory: %w", err)
	}
	f := strings.Fields(string(text))
	if len(f) < 2 {
		return 0, fmt.Errorf("resident memory of %d: unexpected text %q", pid, text)
	}
	pages, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("resident memory of %d: %w", pid, err)
	}
	return pages * int64(os.Getpagesize()), nil
}
