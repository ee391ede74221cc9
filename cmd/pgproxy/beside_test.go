package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// besides are the poolers of TestFaultBeside.
var besides = []struct {
	name string
	more string // lines of [pgbouncer]; "" is pgproxy's
}{
	{"pgproxy", ""},
	{"PgBouncer", "\n"},
	{"PgBouncer, server_login_retry = 1", "server_login_retry = 1\n"},
}

// beside is a pooler that is compared.
type beside struct {
	name string
	l    *ledger
	b    *bouncer // nil: pgproxy

	inFlight, later, unknown []int     // errors of each crash
	gaps                     []float64 // seconds
	told                     map[string]int
}

// TestFaultBeside has pgproxy and PgBouncer, both as they are by default, stand in
// front of one cluster, each with writers of its own. The primary is killed and a
// replica promoted. PgBouncer is then told so as its users do: another host in its
// file, and RELOAD. Nobody tells pgproxy.
func TestFaultBeside(t *testing.T) {
	switch _, err := os.Stat(bouncerProgram); {
	case !full():
		// It takes a minute or two.
		t.Skip("with \"make faults\"")
	case err != nil:
		t.Skipf("NOT COMPARED with PgBouncer: %v", err) // it is another's program
	}
	const writers = 10
	c := ledgerCluster(t, 2)
	var all []*beside
	for i, x := range besides {
		p := &beside{name: x.name, told: make(map[string]int), l: &ledger{t: t, c: c, outcomes: make(map[int64]outcome), rest: 100 * time.Millisecond}}
		p.l.ctx, p.l.stop = context.WithCancel(context.Background())
		p.l.nextID.Store(int64(i) * 1e9)
		if x.more == "" {
			var servers []string
			for _, n := range c.Nodes() {
				servers = append(servers, n.Addr())
			}
			p.l.app = startProxy(t, servers, "", "")
			p.l.dsn = p.l.app.dsn(appUser, "app")
		} else {
			p.b = startBouncer(t, c, x.name, bouncerProgram, &behaviour{more: x.more})
			p.l.dsn = fmt.Sprintf("postgres://app:app%%20secret@%s/app?sslmode=disable", p.b.addr())
		}
		all = append(all, p)
	}
	for _, p := range all {
		for i := range writers {
			p.l.goes.Go(func() { p.l.write(i) })
		}
		t.Cleanup(p.l.end)
	}
	flow := func(d time.Duration) {
		t.Helper()
		for _, p := range all {
			was := p.l.done[0].Load()
			eventually(t, d, p.name+" gets on", func() bool { return p.l.done[0].Load() >= was+20 })
		}
	}
	primary := c.Primary
	for range 5 {
		flow(30 * time.Second)
		for _, p := range all {
			p.reset()
		}
		next, other := all[0].l.successor(primary)
		if err := primary.Kill(); err != nil {
			t.Fatal(err)
		}
		dead := time.Now()
		all[0].l.succeed(next, other)
		for _, p := range all {
			if p.b != nil {
				p.b.follow(primary, next)
			}
		}
		flow(2 * time.Minute)
		for _, p := range all {
			p.note(dead)
		}
		if err := primary.Clone(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		primary = next
	}
	for _, p := range all {
		p.l.end()
	}
	for _, p := range all {
		t.Log(p.name)
		p.l.auditOn(primary)
		for text, n := range p.told {
			t.Logf("  %d times: %s", n, text)
		}
	}
	t.Logf("%d writers, %d crashes: median (worst)\n%s", writers, len(all[0].gaps), table(all))
}

// follow changes the host in the file, and reloads it.
func (b *bouncer) follow(old, next *pgtest.Node) {
	b.t.Helper()
	path := b.dir + "/pgbouncer.ini"
	text, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatal(err)
	}
	b.put("pgbouncer.ini", strings.Replace(string(text), "port="+strconv.Itoa(old.Port), "port="+strconv.Itoa(next.Port), 1))
	if answer := b.say("RELOAD"); answer != "RELOAD" {
		b.t.Fatalf("RELOAD: %s", answer)
	}
}

// reset forgets what was until now.
func (p *beside) reset() {
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	p.l.complaints, p.l.gap = nil, 0
}

// note counts what a crash has cost.
func (p *beside) note(dead time.Time) {
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	flight, later, unknown := 0, 0, 0
	for _, c := range p.l.complaints {
		if c.began.Before(dead) {
			flight++
		} else {
			later++
		}
		if strings.HasPrefix(c.err.Error(), "COMMIT") {
			unknown++
		}
		p.told[c.err.Error()]++
	}
	p.inFlight, p.later, p.unknown = append(p.inFlight, flight), append(p.later, later), append(p.unknown, unknown)
	p.gaps = append(p.gaps, p.l.gap.Seconds())
}

func table(all []*beside) string {
	var b strings.Builder
	b.WriteString("| | errors of what was in flight | errors of what began after the crash | commits of unknown outcome | seconds without a commit |\n|---|---|---|---|---|\n")
	for _, p := range all {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", p.name, spread(p.inFlight, "%d"), spread(p.later, "%d"), spread(p.unknown, "%d"), spread(p.gaps, "%.1f"))
	}
	return b.String()
}

// spread is the median and the highest of some numbers.
func spread[T int | float64](list []T, format string) string {
	s := slices.Sorted(slices.Values(list))
	return fmt.Sprintf(format+" ("+format+")", s[len(s)/2], s[len(s)-1])
}
