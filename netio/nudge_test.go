package netio_test

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/netio"
)

// TestNudge: the handler is shown what is in hand, be it nothing, without an end to
// the loop; Wake ends it all the same.
func TestNudge(t *testing.T) {
	pipe := func() (net.Conn, net.Conn) { return net.Pipe() }
	tcp := func() (net.Conn, net.Conn) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		a, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return a, b
	}
	for name, dial := range map[string]func() (net.Conn, net.Conn){"plain": pipe, "descriptor": tcp} {
		t.Run(name, func(t *testing.T) {
			theirs, ours := dial()
			defer func() { _ = theirs.Close() }()
			c := netio.New(ours, 1<<16)
			defer func() { _ = c.Close() }()
			shown := make(chan string, 100)
			var take atomic.Bool
			done := make(chan error, 1)
			go func() {
				done <- c.Loop(func(p []byte) (int, error) {
					shown <- string(p)
					if take.Load() {
						return len(p), nil
					}
					return 0, nil
				})
			}()
			see := func(want string) {
				t.Helper()
				select {
				case got := <-shown:
					if got != want {
						t.Fatalf("shown %q, want %q", got, want)
					}
				case <-time.After(10 * time.Second):
					t.Fatalf("not shown %q", want)
				}
			}
			c.Nudge()
			see("")
			if _, err := theirs.Write([]byte("half")); err != nil {
				t.Fatal(err)
			}
			see("half")
			for range 20 {
				c.Nudge()
				see("half")
			}
			take.Store(true)
			if _, err := theirs.Write([]byte(" and half")); err != nil {
				t.Fatal(err)
			}
			see("half and half")
			c.Nudge()
			see("")
			c.Nudge()
			c.Wake()
			select {
			case err := <-done:
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("ended with %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("Wake does not end the loop")
			}
		})
	}
}
