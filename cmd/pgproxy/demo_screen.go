package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"pgproxy/monitor"
	"pgproxy/pool"
)

// screen shows the demo's figures once a second: redrawn in place on a
// terminal, else one line each time.
type screen struct {
	app      *app
	load     *demoLoad // nil: none
	head     []string
	out      io.Writer
	terminal bool

	began time.Time
	last  time.Time
	seen  map[string]uint64 // transactions by server at the last look
}

func newScreen(a *app, load *demoLoad, head []string, out io.Writer) *screen {
	now := time.Now()
	return &screen{app: a, load: load, head: head, out: out, terminal: isTerminal(out), began: now, last: now, seen: make(map[string]uint64)}
}

// isTerminal reports whether w is a device that shows characters.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	i, err := f.Stat()
	return err == nil && i.Mode()&os.ModeCharDevice != 0
}

// run draws until ctx ends.
func (s *screen) run(ctx context.Context) {
	if !s.terminal {
		fmt.Fprintf(s.out, "%s\n\n", strings.Join(s.head, "\n"))
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			fmt.Fprintln(s.out, "\nEnding servers and proxy.")
			return
		case <-t.C:
			s.draw(s.look())
		}
	}
}

// serverFigures are what the screen shows of one server.
type serverFigures struct {
	monitor.Status
	rate                          float64 // transactions a second since the last look
	active, idle, waiting, opened int
}

// figures are one look at everything.
type figures struct {
	servers []serverFigures
	rate    float64
	clients int
	waiting int
	errors  uint64
	last    string
}

// look takes the figures since the look before.
func (s *screen) look() figures {
	now := time.Now()
	seconds := now.Sub(s.last).Seconds()
	s.last = now
	pools := s.app.pools.Stats()
	f := figures{clients: s.app.server.Stats().Clients}
	if s.load != nil {
		f.errors = s.load.errors.Load()
		if p := s.load.lastError.Load(); p != nil {
			f.last = *p
		}
	}
	for _, st := range s.app.monitor.Status() {
		v := serverFigures{Status: st}
		total := uint64(0)
		for _, p := range of(pools, st.Addr) {
			total += p.Counters.Xacts
			v.active += p.Active
			v.idle += p.Idle + p.Used
			v.waiting += p.Waiting
			v.opened += p.Servers()
		}
		v.rate = float64(total-s.seen[st.Addr]) / seconds
		s.seen[st.Addr] = total
		f.rate += v.rate
		f.waiting += v.waiting
		f.servers = append(f.servers, v)
	}
	return f
}

// of returns the pools of one server.
func of(pools []pool.Stats, addr string) []pool.Stats {
	return slices.DeleteFunc(slices.Clone(pools), func(p pool.Stats) bool { return p.Key.Server != addr })
}

func (s *screen) draw(f figures) {
	var b bytes.Buffer
	age := time.Since(s.began).Round(time.Second)
	if !s.terminal {
		fmt.Fprintf(&b, "%4s  %6.0f tps  %d clients, %d waiting ", age, f.rate, f.clients, f.waiting)
		for _, v := range f.servers {
			fmt.Fprintf(&b, " | %s:%d %s %.0f tps, lag %s, %d of %d connections busy",
				v.Host, v.Port, role(v.Status), v.rate, v.Lag.Round(time.Millisecond), v.active, v.opened)
		}
		if f.errors > 0 {
			fmt.Fprintf(&b, " | %d errors, last: %s", f.errors, f.last)
		}
		b.WriteByte('\n')
		_, _ = s.out.Write(b.Bytes())
		return
	}
	b.WriteString("\x1b[H\x1b[2J")
	fmt.Fprintf(&b, "pgproxy demo, %s. Ctrl-C ends it and removes everything.\n\n", age)
	for _, h := range s.head {
		fmt.Fprintf(&b, "  %s\n", h)
	}
	fmt.Fprintf(&b, "\n  transactions a second %8.0f\n  clients               %8d\n  waiting               %8d\n\n", f.rate, f.clients, f.waiting)
	fmt.Fprintf(&b, "  %-22s %-9s %10s %10s %8s %8s %8s\n", "server", "role", "tps", "lag", "busy", "idle", "waiting")
	for _, v := range f.servers {
		fmt.Fprintf(&b, "  %-22s %-9s %10.0f %10s %8d %8d %8d\n", v.Addr, role(v.Status), v.rate,
			v.Lag.Round(time.Millisecond), v.active, v.idle, v.waiting)
	}
	if f.errors > 0 {
		fmt.Fprintf(&b, "\n  errors of the workload: %d, the last one: %s\n", f.errors, f.last)
	}
	_, _ = s.out.Write(b.Bytes())
}

func role(s monitor.Status) string {
	if !s.Up {
		return "down"
	}
	return s.Role.String()
}
