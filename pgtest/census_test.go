package pgtest

import (
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func TestCensus(t *testing.T) {
	c := Shared(t)
	ctx := testContext(t)
	quiet := NewCensus(t, c.Nodes()...)
	quiet.AssertBaseline()
	quiet.AssertQuiet()

	for _, tt := range []struct {
		name  string
		leave func(t *testing.T) (clear func())
		want  []string
	}{
		{"goroutine", func(*testing.T) func() {
			stop := make(chan struct{})
			go leftBehind(stop)
			return func() { close(stop) }
		}, []string{"goroutines", "leftBehind at census_test.go"}},
		{"descriptor", func(t *testing.T) func() {
			f, err := os.Open("census_test.go")
			must(t, err)
			return func() { _ = f.Close() }
		}, []string{"open descriptors", "census_test.go"}},
		{"listener", func(t *testing.T) func() {
			ln, err := net.Listen("tcp4", "127.0.0.1:0")
			must(t, err)
			return func() { _ = ln.Close() }
		}, []string{"open descriptors", "socket:"}},
		{"session", func(t *testing.T) func() {
			client := DialRaw(t, c.Replicas[1].Addr())
			client.Login(Superuser, SuperuserPassword, "database", "postgres", "application_name", "left")
			return client.Close
		}, []string{"client sessions on replica2", `application "left"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &recorder{TB: t}
			census := NewCensus(r, c.Nodes()...)
			clear := tt.leave(t)
			census.patience = 100 * time.Millisecond
			census.AssertBaseline()
			said := strings.Join(r.said, "\n")
			for _, w := range tt.want {
				if !strings.Contains(said, w) {
					t.Errorf("said %q, want %q in it", said, w)
				}
			}
			clear()
			r.said = nil
			census.patience = censusPatience
			census.AssertBaseline()
			if len(r.said) > 0 {
				t.Errorf("after clearing away: %q", r.said)
			}
		})
	}

	t.Run("not quiet", func(t *testing.T) {
		r := &recorder{TB: t}
		census := NewCensus(r, c.Nodes()...)
		census.patience = 100 * time.Millisecond
		client := DialRaw(t, c.Primary.Addr())
		client.Login(Superuser, SuperuserPassword, "database", "postgres", "application_name", "left")
		census.AssertQuiet()
		if len(r.said) > 0 {
			t.Errorf("an idle session: %q", r.said)
		}
		client.Query("BEGIN")
		census.AssertQuiet()
		if said := strings.Join(r.said, "\n"); !strings.Contains(said, "idle in transaction") {
			t.Errorf("said %q", said)
		}
		client.Terminate()
		must(t, c.Primary.WaitFor(ctx, "postgres", "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'left'"))
	})
}

func leftBehind(stop <-chan struct{}) { <-stop }

func TestResidentMemory(t *testing.T) {
	n, err := ResidentMemory(os.Getpid())
	must(t, err)
	if n < 1<<20 || n > 8<<30 {
		t.Errorf("%d bytes", n)
	}
	if _, err := ResidentMemory(0); err == nil {
		t.Error("process 0 has memory")
	}
}
