package proxy_test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"pgproxy/pgtest"
)

// signals are the ways to name a process in a statement, as clients write them.
var signals = map[string]func(function string, pid uint32) []byte{
	"literal": func(f string, pid uint32) []byte { return pgtest.Query(fmt.Sprintf("SELECT %s(%d)", f, pid)) },
	"text parameter": func(f string, pid uint32) []byte {
		return pgtest.Extended("SELECT "+f+"($1)", fmt.Sprint(pid))
	},
	"binary parameter": func(f string, pid uint32) []byte {
		return pgtest.Join(pgtest.Parse("", "SELECT "+f+"($1)"),
			pgtest.BindFormats("", "", []uint16{1}, [][]byte{binary.BigEndian.AppendUint32(nil, pid)}, nil),
			pgtest.Execute("", 0), pgtest.Sync())
	},
	"named statement": func(f string, pid uint32) []byte {
		return pgtest.Join(pgtest.Parse("s", "SELECT "+f+"($1)"), pgtest.Bind("", "s", fmt.Sprint(pid)),
			pgtest.Execute("", 0), pgtest.Close('S', "s"), pgtest.Sync())
	},
	"array": func(f string, pid uint32) []byte {
		return pgtest.Extended("SELECT "+f+"(n) FROM unnest($1::int[]) n", fmt.Sprintf("{%d,%d}", pid, pid))
	},
}

// TestTerminateClient: the process number that a client was told at its login
// stands for its session, as it does on a server.
func TestTerminateClient(t *testing.T) {
	c := realCluster(t)
	for name, message := range signals {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 3"})
			killer, idle, busy, bystander := h.Client(t), h.Client(t), h.Client(t), h.Client(t)
			idle.Query("SELECT 1")
			begin(bystander)
			busy.Send(pgtest.Query("SELECT 'busy " + name + "' FROM pg_sleep(60)"))
			waitSleeping(t, c, "busy "+name)
			for _, victim := range []*pgtest.RawClient{idle, busy} {
				killer.Send(message("pg_terminate_backend", victim.PID))
				if got := pgtest.Trace(killer.ReadUntilReady()); !strings.HasSuffix(got, " Z(I)") || strings.Contains(got, "E(") {
					t.Errorf("who asked for it got %s", got)
				}
				if got, want := pgtest.Trace(victim.ExpectEOF()), "E(57P01)"; !strings.HasSuffix(got, want) {
					t.Errorf("got %s, want %s", got, want)
				}
			}
			if got, want := bystander.Query("COMMIT"), "C(COMMIT) Z(I)"; got != want {
				t.Errorf("another client got %s, want %s", got, want)
			}
		})
	}
}

func TestCancelClientByNumber(t *testing.T) {
	c := realCluster(t)
	for name, message := range signals {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 2"})
			a, b := h.Client(t), h.Client(t)
			a.Send(pgtest.Query("SELECT 'by number, " + name + "' FROM pg_sleep(60)"))
			waitSleeping(t, c, "by number, "+name)
			b.Send(message("pg_cancel_backend", a.PID))
			if got := pgtest.Trace(b.ReadUntilReady()); !strings.HasSuffix(got, " Z(I)") || strings.Contains(got, "E(") {
				t.Errorf("who asked for it got %s", got)
			}
			if got := pgtest.Trace(a.ReadUntilReady()); !strings.HasSuffix(got, "E(57014) Z(I)") {
				t.Errorf("cancelled client got %s", got)
			}
			if got, want := a.Query("SELECT 'alive'"), "T D(alive) C(SELECT 1) Z(I)"; got != want {
				t.Errorf("after the cancel got %s, want %s", got, want)
			}
		})
	}
}

func TestTerminateOneself(t *testing.T) {
	h := newHarness(t, harnessOptions{Servers: addrs(realCluster(t))[:1]})
	a := h.Client(t)
	a.Send(pgtest.Query(fmt.Sprintf("SELECT pg_terminate_backend(%d)", a.PID)))
	if got := pgtest.Trace(a.ExpectEOF()); !strings.HasSuffix(got, "E(57P01)") {
		t.Errorf("got %s", got)
	}
}

// TestSignalNeedsTheRight: only a client of the same role, or a superuser, can
// end a session.
func TestSignalNeedsTheRight(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1]})
	a := h.Client(t)
	login := func() *pgtest.RawClient {
		b := pgtest.DialRaw(t, h.Addr)
		b.Login(otherUser, otherSecret, "database", "app")
		return b
	}
	b := login()
	for _, f := range []string{"pg_terminate_backend", "pg_cancel_backend"} {
		if got, want := b.Query(fmt.Sprintf("SELECT %s(%d)", f, a.PID)), "N(01000) T D(f) C(SELECT 1) Z(I)"; got != want && got != "T N(01000) D(f) C(SELECT 1) Z(I)" {
			t.Errorf("%s: got %s, want %s", f, got, want)
		}
	}
	// A text that does neither by itself, and what only looks like the warning.
	for _, sql := range []string{
		fmt.Sprintf("DO $$ BEGIN RAISE WARNING 'PID %d is not a PostgreSQL server process'; END $$", a.PID),
		"SELECT pg_terminate_backend(2147483647)", "SELECT pg_terminate_backend(-1)",
	} {
		h.Client(t).Query(sql)
	}
	if got, want := a.Query("SELECT 'alive'"), "T D(alive) C(SELECT 1) Z(I)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	b.Terminate()

	if err := c.Exec(t.Context(), "ALTER ROLE "+otherUser+" SUPERUSER"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Exec(t.Context(), "ALTER ROLE "+otherUser+" NOSUPERUSER"); err != nil {
			t.Error(err)
		}
	}()
	h.Pools.Reconnect("")
	login().Query(fmt.Sprintf("SELECT pg_terminate_backend(%d)", a.PID))
	if got, want := pgtest.Trace(a.ExpectEOF()), "E(57P01)"; got != want {
		t.Errorf("by a superuser: got %s, want %s", got, want)
	}
}

// TestNumbersOfClients: a client's number is never that of a process, which
// somebody could end in its place.
func TestNumbersOfClients(t *testing.T) {
	h := newHarness(t, harnessOptions{Servers: addrs(realCluster(t))[:1]})
	for range 20 {
		a := h.Client(t)
		if a.PID < 1<<22 || a.PID > 1<<31-1 {
			t.Errorf("client %d", a.PID)
		}
		a.Terminate()
	}
}
