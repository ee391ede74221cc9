package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/config"
	"pgproxy/router"
)

// table is an entry whose servers answer what a test says; nothing is asked.
type table struct {
	*entry
	t   *testing.T
	log *record
}

func newTable(t *testing.T, roles ...config.ServerRole) *table {
	log := new(record)
	e := newEntry("app", slog.New(slog.NewTextHandler(log, nil)), nil, new(events))
	for i, role := range roles {
		s := newServer(context.Background(), e, fmt.Sprint("s", i), new(atomic.Int64))
		s.state.conf, s.state.grace = config.Server{Host: s.addr, Role: role, Weight: 1}, time.Hour
		e.servers = append(e.servers, s)
		t.Cleanup(s.stop)
	}
	e.topology.Store(&router.Topology{Turn: e.turn})
	return &table{e, t, log}
}

func autos(n int) []config.ServerRole { return make([]config.ServerRole, n) }

func (b *table) primary(i int, timeline uint32, lsn uint64) int64 {
	a := &answer{stamp: router.Nanotime(), positioned: true, id: identity{"one", timeline}, insert: lsn, flush: lsn}
	b.report(b.servers[i], result{verdict: alive, answer: a})
	return a.stamp
}

func (b *table) replica(i int, timeline uint32, lsn uint64) {
	b.answer(i, answer{recovery: true, positioned: true, id: identity{"one", timeline}, replay: lsn, receive: lsn, receiving: true})
}

func (b *table) answer(i int, a answer) {
	a.stamp = router.Nanotime()
	b.report(b.servers[i], result{verdict: alive, answer: &a})
}

func (b *table) fails(i int, v verdict) {
	b.report(b.servers[i], result{verdict: v, err: errors.New("no answer")})
}

func (b *table) see(i int, role router.Role, up bool, covered int64) {
	b.t.Helper()
	s := b.topology.Load().Servers[i]
	if role == router.RolePrimary {
		covered = s.Covered // of the newest sample
	}
	if s.Role != role || s.Up != up || s.Covered != covered {
		b.t.Errorf("server %d is %v, up %v, covered %d; want %v, %v, %d", i, s.Role, s.Up, s.Covered, role, up, covered)
	}
}

func TestCoveredIsWhatIsReplayed(t *testing.T) {
	b := newTable(t, autos(2)...)
	first := b.primary(0, 1, 100)
	b.replica(1, 1, 99)
	b.see(0, router.RolePrimary, true, 0)
	b.see(1, router.RoleReplica, true, 0)
	b.replica(1, 1, 100)
	b.see(1, router.RoleReplica, true, first)
	second := b.primary(0, 1, 200)
	b.see(1, router.RoleReplica, true, first)
	b.replica(1, 1, 250)
	b.see(1, router.RoleReplica, true, second)
	third := b.primary(0, 1, 250)
	b.see(1, router.RoleReplica, true, third)
}

func TestCoveredIsForgottenWithTheConnection(t *testing.T) {
	b := newTable(t, autos(2)...)
	stamp := b.primary(0, 1, 100)
	b.replica(1, 1, 100)
	b.see(1, router.RoleReplica, true, stamp)
	b.lost(b.servers[1])
	b.see(1, router.RoleReplica, true, 0)
	b.replica(1, 1, 90) // a crash has taken it back
	b.see(1, router.RoleReplica, true, 0)
}

func TestPositionsOfAnotherTimelineCountForNothing(t *testing.T) {
	b := newTable(t, autos(3)...)
	b.primary(0, 1, 1000)
	b.replica(1, 1, 900)
	b.replica(2, 1, 1000)
	b.fails(0, dead)
	stamp := b.primary(1, 2, 950)
	b.see(0, router.RoleUnknown, false, 0)
	b.see(1, router.RolePrimary, true, 0)
	b.see(2, router.RoleReplica, true, 0) // it has 1000 of timeline 1
	if lag := b.topology.Load().Servers[2].Lag; lag <= 0 {
		t.Errorf("a replica of an old timeline has lag %v", lag)
	}
	b.replica(2, 2, 949)
	b.see(2, router.RoleReplica, true, 0)
	b.replica(2, 2, 950)
	b.see(2, router.RoleReplica, true, stamp)
	b.replica(2, 3, 2000)
	b.see(2, router.RoleReplica, true, 0)
	b.replica(2, 0, 2000)
	b.see(2, router.RoleReplica, true, 0)
}

func TestHigherTimelineWinsAndIsRemembered(t *testing.T) {
	b := newTable(t, autos(2)...)
	b.primary(0, 1, 1000)
	b.primary(1, 2, 900)
	b.see(0, router.RoleUnknown, true, 0)
	b.see(1, router.RolePrimary, true, 0)
	b.fails(1, dead)
	b.primary(0, 1, 1100)
	b.see(0, router.RoleUnknown, true, 0)
	if n := b.log.count("newer timeline"); n != 1 {
		t.Errorf("the fence was logged %d times:\n%s", n, b.log)
	}
	b.primary(0, 3, 1200)
	b.see(0, router.RolePrimary, true, 0)
}

func TestTwoPrimariesOnOneTimelineCoverNothing(t *testing.T) {
	b := newTable(t, autos(3)...)
	b.primary(0, 1, 100)
	b.replica(2, 1, 100)
	b.primary(1, 1, 50)
	b.see(0, router.RolePrimary, true, 0)
	b.see(1, router.RolePrimary, true, 0)
	b.see(2, router.RoleReplica, true, 0)
	if c := b.topology.Load().Choose(router.Policy{}, &router.Request{Plan: &router.Plan{Target: "primary"}}); c.Server != -1 {
		t.Errorf("a primary was chosen: %+v", c)
	}
}

func TestForeignServerIsNotUsed(t *testing.T) {
	b := newTable(t, autos(2)...)
	b.primary(0, 1, 100)
	b.answer(1, answer{recovery: true, positioned: true, id: identity{"two", 1}, replay: 200})
	b.see(1, router.RoleUnknown, true, 0)
	if b.log.count("another cluster") != 1 {
		t.Errorf("not logged:\n%s", b.log)
	}
}

func TestFixedRoles(t *testing.T) {
	b := newTable(t, config.RolePrimary, config.RoleReplica)
	b.see2(t)
	b.replica(0, 1, 100)
	b.replica(0, 1, 100)
	b.primary(1, 1, 100)
	b.see(0, router.RolePrimary, true, 0)
	b.see(1, router.RoleReplica, true, 0)
	if n := b.log.count("not what the file says"); n != 2 {
		t.Errorf("%d warnings, want one for each server:\n%s", n, b.log)
	}
}

// see2 checks that roles of the file are there before any check.
func (b *table) see2(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	b.publishLocked()
	b.unlock()
	b.see(0, router.RolePrimary, false, 0)
	b.see(1, router.RoleReplica, false, 0)
}

func TestUpAndDown(t *testing.T) {
	b := newTable(t, autos(1)...)
	b.fails(0, kept)
	b.see(0, router.RoleUnknown, false, 0)
	b.primary(0, 1, 100)
	up := b.servers[0].state.changed
	b.fails(0, failing)
	b.fails(0, kept)
	b.see(0, router.RolePrimary, true, 0)
	if !b.servers[0].state.changed.Equal(up) {
		t.Error("a failure that changes nothing changed Changed")
	}
	b.fails(0, dead)
	b.see(0, router.RolePrimary, false, 0)
	b.fails(0, dead)
	b.primary(0, 1, 100)
	b.see(0, router.RolePrimary, true, 0)
	if st := b.servers[0].state; st.checks != 7 || st.failures != 5 || st.lastError != "" {
		t.Errorf("%d checks, %d failures, last error %q", st.checks, st.failures, st.lastError)
	}
	if n := b.log.count("server is up"); n != 2 {
		t.Errorf("logged %d times that it is up:\n%s", n, b.log)
	}
}

func TestLag(t *testing.T) {
	lag := func(b *table, i int) time.Duration { return b.topology.Load().Servers[i].Lag }

	t.Run("caught up with an idle primary", func(t *testing.T) {
		b := newTable(t, autos(2)...)
		b.primary(0, 1, 100)
		b.answer(1, answer{recovery: true, positioned: true, id: identity{"one", 1}, replay: 100, delay: time.Hour})
		if got := lag(b, 1); got != 0 {
			t.Errorf("%v", got)
		}
	})
	t.Run("older than the history", func(t *testing.T) {
		b := newTable(t, autos(2)...)
		b.primary(0, 1, 100)
		b.answer(1, answer{recovery: true, positioned: true, id: identity{"one", 1}, replay: 50, delay: time.Hour})
		if got := lag(b, 1); got != time.Hour {
			t.Errorf("%v", got)
		}
	})
	t.Run("age of what is missing", func(t *testing.T) {
		b := newTable(t, autos(2)...)
		b.primary(0, 1, 100)
		b.replica(1, 1, 100)
		missing := b.primary(0, 1, 200)
		b.primary(0, 1, 300)
		b.replica(1, 1, 199)
		if got, most := lag(b, 1), time.Duration(router.Nanotime()-missing); got <= 0 || got > most {
			t.Errorf("%v, at most %v", got, most)
		}
	})
	t.Run("no walreceiver, and the primary goes on", func(t *testing.T) {
		b := newTable(t, autos(2)...)
		b.primary(0, 1, 100)
		b.answer(1, answer{recovery: true, positioned: true, id: identity{"one", 1}, replay: 100, receive: 100})
		b.primary(0, 1, 200)
		if got := lag(b, 1); got <= 0 {
			t.Errorf("%v", got)
		}
	})
	t.Run("the primary is down", func(t *testing.T) {
		b := newTable(t, autos(2)...)
		b.primary(0, 1, 100)
		b.fails(0, dead)
		b.servers[0].state.grace, b.servers[1].state.grace = 0, time.Hour
		b.answer(1, answer{recovery: true, positioned: true, id: identity{"one", 1}, replay: 100, delay: time.Hour})
		if got := lag(b, 1); got != 0 {
			t.Errorf("%v", got)
		}
	})
	t.Run("the primary is up and does not answer", func(t *testing.T) {
		b := newTable(t, autos(2)...)
		b.servers[0].state.grace = 0
		b.primary(0, 1, 100)
		b.fails(0, kept)
		b.replica(1, 1, 100)
		if got := lag(b, 1); got <= 0 {
			t.Errorf("%v", got)
		}
	})
	t.Run("the replica does not answer", func(t *testing.T) {
		b := newTable(t, autos(2)...)
		b.servers[1].state.grace = 0
		b.primary(0, 1, 100)
		b.replica(1, 1, 100)
		b.fails(1, kept)
		if got := lag(b, 1); got <= 0 {
			t.Errorf("%v", got)
		}
	})
	t.Run("no primary, it has what it receives", func(t *testing.T) {
		b := newTable(t, autos(1)...)
		b.answer(0, answer{recovery: true, positioned: true, replay: 100, receive: 100, receiving: true, delay: time.Hour})
		if got := lag(b, 0); got != 0 {
			t.Errorf("%v", got)
		}
	})
	t.Run("no primary, it lacks what it received", func(t *testing.T) {
		b := newTable(t, autos(1)...)
		b.answer(0, answer{recovery: true, positioned: true, replay: 99, receive: 100, receiving: true, delay: time.Minute})
		if got := lag(b, 0); got != time.Minute {
			t.Errorf("%v", got)
		}
	})
	t.Run("no primary, no walreceiver", func(t *testing.T) {
		b := newTable(t, autos(1)...)
		b.answer(0, answer{recovery: true, positioned: true, replay: 100, delay: time.Minute})
		if got := lag(b, 0); got != time.Minute {
			t.Errorf("%v", got)
		}
	})
}

func TestSameNewsMakesNoPicture(t *testing.T) {
	b := newTable(t, autos(2)...)
	b.primary(0, 1, 100)
	b.replica(1, 1, 100)
	was := b.topology.Load()
	b.replica(1, 1, 100)
	if got := b.topology.Load(); got != was {
		t.Errorf("generation %d after %d", got.Generation, was.Generation)
	}
	b.primary(0, 1, 100) // a newer stamp covers more
	if got := b.topology.Load(); got.Generation != was.Generation+1 || got.Turn != was.Turn {
		t.Errorf("generation %d after %d", got.Generation, was.Generation)
	}
}

func TestJudgeLogin(t *testing.T) {
	refuse := func(code string) error {
		return fmt.Errorf("login: %w", &pgconn.PgError{Severity: "FATAL", Code: code})
	}
	for _, c := range []struct {
		name string
		err  error
		want verdict
	}{
		{"starting up", refuse("57P03"), dead},
		{"shutting down", refuse("57P01"), dead},
		{"crashed", refuse("57P02"), dead},
		{"too many connections", refuse("53300"), kept},
		{"wrong password", refuse("28P01"), kept},
		{"not in pg_hba.conf", refuse("28000"), kept},
		{"no such database", refuse("3D000"), kept},
		{"connection refused", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, dead},
		{"no such socket", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENOENT)}, dead},
		{"no route", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, failing},
		{"reset", &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, failing},
		{"timeout", context.DeadlineExceeded, failing},
		{"name server", &net.DNSError{Err: "server misbehaving"}, failing},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := judgeLogin(c.err); got != c.want {
				t.Errorf("verdict %d, want %d", got, c.want)
			}
		})
	}
}

func TestPictureHasPositions(t *testing.T) {
	b := newTable(t, autos(2)...)
	b.primary(0, 3, 100)
	b.replica(1, 3, 90)
	top := b.topology.Load()
	if p, r := top.Servers[0], top.Servers[1]; top.System != "one" || p.Timeline != 3 || p.LSN != 100 || r.Timeline != 3 || r.LSN != 90 {
		t.Errorf("%+v", top)
	}
}
