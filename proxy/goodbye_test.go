package proxy_test

import (
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// stopping is a server that tells its first processes to end. Each of them says
// goodbye with the next thing that it is asked, as one does that the machine has no
// time for before. Those of later connections live.
type stopping struct {
	*pgtest.FakeServer
	first   int
	told    atomic.Bool
	meeting atomic.Int64
	met     chan struct{} // closed when all of the first are at work
}

func newStopping(t *testing.T, first int) *stopping {
	s := &stopping{first: first, met: make(chan struct{})}
	s.FakeServer = pgtest.NewFakeServer(t, func(f *pgtest.FakeConn) error {
		if err := f.Accept(); err != nil {
			return err
		}
		return f.Serve(func(sql string) (string, error) {
			if s.told.Load() && f.Index < first {
				if err := f.Send(wire.Fatalf(wire.CodeAdminShutdown, "terminating connection due to administrator command").Append(nil)); err != nil {
					return "", err
				}
				return "", io.EOF
			}
			if strings.HasSuffix(sql, meet) {
				if s.meeting.Add(1) == int64(first) {
					close(s.met)
				}
				<-s.met
			}
			return sql, nil
		})
	})
	return s
}

const meet = "SELECT 'meet'"

// A server that stops ends one connection after the other. What may be run again
// does not go from one that is about to end to the next, until it has been run too
// often; of what may not be, the first one alone is lost.
func TestGoodbyes(t *testing.T) {
	const connections = 8 // more than maxRuns, and less than default_pool_size
	for _, tt := range []struct {
		name, sql, want string
		servers         int
		reruns          uint64
	}{
		{"BEGIN", "BEGIN", "T D(BEGIN) C(SELECT 1) Z(I)", 1, 1},
		{"read", "SELECT 1", "T D(SELECT 1) C(SELECT 1) Z(I)", 2, 2},
		{"write", "INSERT INTO t VALUES (1)", "T D(INSERT INTO t VALUES (1)) C(SELECT 1) Z(I)", 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var servers []*stopping
			var at []string
			for range tt.servers {
				s := newStopping(t, connections)
				servers, at = append(servers, s), append(at, s.Addr())
			}
			h := newHarness(t, harnessOptions{
				Servers: at, Untidy: "fake servers", Proxy: "deferred_begin = false",
				Database: "read_write_split = \"auto\"\nconsistency = \"eventual\"\nprimary_reads = \"share\"",
			})
			for i := range servers {
				target := []string{"primary", "replica"}[i]
				clients := make([]*pgtest.RawClient, connections)
				for i := range clients {
					clients[i] = h.Client(t)
					clients[i].Send(pgtest.Query("/* pgproxy: target=" + target + " */ " + meet))
				}
				for _, c := range clients {
					c.ReadUntilReady()
				}
			}
			c := h.Client(t)
			for _, s := range servers {
				s.told.Store(true)
			}
			if tt.name == "write" {
				first := h.Client(t)
				first.Send(pgtest.Query(tt.sql))
				if got := pgtest.Trace(first.ExpectEOF()); got != "E(57P01)" {
					t.Errorf("the first one was told %s", got)
				}
			}
			within(t, 10*time.Second, "an answer", func() {
				for i := range 3 {
					c.Send(pgtest.Query(tt.sql))
					if got := pgtest.Trace(c.ReadUntilReady()); got != tt.want {
						t.Errorf("%s of number %d", got, i)
						return
					}
				}
			})
			if n := h.Server.Stats().Rerun.Died; n != tt.reruns {
				t.Errorf("run again %d times, want %d", n, tt.reruns)
			}
		})
	}
}
