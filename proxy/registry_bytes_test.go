package proxy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// TestClosedStatementsAreBounded: texts that no client has any more do not pile
// up, short or long, however the client lets go of them.
func TestClosedStatementsAreBounded(t *testing.T) {
	srv := echoServer(t)
	h := newHarness(t, harnessOptions{Servers: []string{srv.Addr()}})
	for _, v := range []struct{ size, count, most int }{{900 << 10, 20, 0}, {60 << 10, 300, 16 << 20 / (60 << 10)}} {
		pad := strings.Repeat("x", v.size)
		a, b := h.Client(t), h.Client(t)
		for i := range v.count {
			c, s := a, fmt.Sprint("s", i)
			if i%2 == 0 {
				c = b
			}
			c.Send(pgtest.Join(pgtest.Parse(s, fmt.Sprintf("SELECT '%s', %d", pad, i)), pgtest.Sync()))
			c.ReadUntilReady()
			if c == a {
				c.Send(pgtest.Join(pgtest.Close('S', s), pgtest.Sync()))
				c.ReadUntilReady()
			}
		}
		b.Close()
		h.waitClients(t, 1)
		a.Query("one") // has taken notice of its last Close
		if n := h.Server.Stats().Statements; n > v.most {
			t.Errorf("%d statements of %d KiB are kept, want at most %d", n, v.size>>10, v.most)
		}
		a.Close()
		h.waitClients(t, 0)
	}
}

// waitClients waits until so many are left.
func (h *harness) waitClients(t *testing.T, n int) {
	t.Helper()
	eventually(t, 10*time.Second, "the end of clients", func() bool { return h.Server.Stats().Clients == n })
}
