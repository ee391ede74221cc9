package proxy_test

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/proxy"
	"pgproxy/wire"
)

// TestReusePort: one of two processes on a port is replaced again and again, and no
// connection is refused or lost (faults.md, B-131).
func TestReusePort(t *testing.T) {
	s := newSlowServer(t)
	port := freePort(t)
	start := func(untidy string) *harness {
		return newHarness(t, harnessOptions{
			Servers: []string{s.Addr()}, Proxy: trust + fmt.Sprintf("listen_port = %d\nso_reuseport = true\nlog_connections = false\n", port), Untidy: untidy,
		})
	}
	h := start("")
	addr := h.Addr
	stop := make(chan struct{})
	var goes sync.WaitGroup
	var done, bad atomic.Int64
	for range 8 {
		goes.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := visit(addr); err != nil {
					bad.Add(1)
					t.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	rounds := 6
	for i := range rounds {
		next := start("others go on")
		if i%2 == 1 { // one more, which stays: the kernel must go on choosing
			third := start("others go on")
			defer third.close()
		}
		before := done.Load()
		if err := <-h.shutdown(h.Server.Shutdown); err != nil {
			t.Error(err)
		}
		eventually(t, 20*time.Second, "visits go on", func() bool { return done.Load() > before+20 || bad.Load() > 0 })
		h.close()
		h = next
	}
	close(stop)
	goes.Wait()
	t.Logf("%d visits", done.Load())
}

// visit logs in, asks something and leaves.
func visit(addr string) error {
	nc, err := dialTCP(addr)
	if err != nil {
		return err
	}
	defer func() { _ = nc.Close() }()
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := nc.Write(append(pgtest.StartupMessage(3<<16, "user", testUser, "database", "app"), pgtest.Query("visit")...)); err != nil {
		return fmt.Errorf("startup: %w", err)
	}
	var got []byte
	buf := make([]byte, 4<<10)
	for {
		n, err := nc.Read(buf)
		got = append(got, buf[:n]...)
		switch {
		case err != nil:
			return fmt.Errorf("after %q: %w", got, err)
		case len(got) > 0 && readies(got) == 2:
			_, err := nc.Write(pgtest.Terminate())
			return err
		}
	}
}

// readies counts the whole ReadyForQuery messages.
func readies(p []byte) (n int) {
	for len(p) >= wire.HeaderLen {
		size := 1 + int(binary.BigEndian.Uint32(p[1:]))
		if size > len(p) {
			break
		}
		if p[0] == wire.ReadyForQuery {
			n++
		}
		p = p[size:]
	}
	return n
}

// freePort is a port that nobody listens on.
func freePort(t testing.TB) int {
	t.Helper()
	port, err := pgtest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// TestSharers counts in tables as the kernel writes them.
func TestSharers(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1920 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1920 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 0000000000000000 100 0 0 10 0
   2: 0100007F:1921 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0000000000000000 100 0 0 10 0
   3: 0100007F:1920 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 444 1 0000000000000000 20 4 30 10 -1
`
	for inode, want := range map[uint64]int{111: 1, 222: 1, 333: 0, 444: -1, 555: -1} {
		if got := proxy.SharersIn(table, inode); got != want {
			t.Errorf("socket %d: %d others, want %d", inode, got, want)
		}
	}
}
