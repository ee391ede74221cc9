package netio_test

import (
	"bytes"
	"io"
	"testing"

	"pgproxy/netio"
)

// TestWriteWaitsForTheReader: all arrives, however slowly the peer reads.
func TestWriteWaitsForTheReader(t *testing.T) {
	onEach(t, func(t *testing.T, kind string) {
		a, b := pair(t, kind)
		c := netio.New(a, 0)
		p := make([]byte, 16<<20)
		for i := range p {
			p[i] = byte(i * 7 >> 3)
		}
		done := make(chan error, 1)
		go func() { done <- c.Write(p) }()
		got := make([]byte, len(p))
		if _, err := io.ReadFull(b, got[:1]); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			t.Errorf("Write returned (%v) with 16 MiB unread", err)
		default:
		}
		if _, err := io.ReadFull(b, got[1:]); err != nil || !bytes.Equal(got, p) {
			t.Errorf("what was read differs (%v)", err)
		}
		if err := <-done; err != nil {
			t.Errorf("write: %v", err)
		}
		if err := c.Write(nil); err != nil {
			t.Errorf("write of nothing: %v", err)
		}
	})
}

func TestCloseEndsWrite(t *testing.T) {
	onEach(t, func(t *testing.T, kind string) {
		a, b := pair(t, kind)
		c := netio.New(a, 0)
		done := make(chan error, 1)
		go func() { done <- c.Write(make([]byte, 64<<20)) }()
		_, _ = io.ReadFull(b, make([]byte, 1))
		_ = c.Close()
		if err := <-done; err == nil {
			t.Error("no error")
		}
	})
}

// TestRelayAllocatesNothing: small messages, there and back.
func TestRelayAllocatesNothing(t *testing.T) {
	a, b := pair(t, "tcp")
	c := netio.New(a, 0)
	var g netio.Gather
	done := make(chan error, 1)
	go func() {
		done <- c.Loop(func(p []byte) (int, error) {
			g.Reset()
			for i := 0; i < len(p); i += 32 {
				g.Relay(p[i:min(i+32, len(p))])
			}
			return len(p), c.Write(g.Bytes())
		})
	}()
	p := bytes.Repeat([]byte("x"), 96)
	q := make([]byte, len(p))
	n := testing.AllocsPerRun(500, func() {
		if _, err := b.Write(p); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(b, q); err != nil {
			t.Error(err)
		}
	})
	if n > 0 && !raceEnabled { // the race detector makes sync.Pool forget
		t.Errorf("%v allocations for each message", n)
	}
	_ = b.Close()
	<-done
}

// TestPoison: with the build tag, a slice that is kept too long shows it.
func TestPoison(t *testing.T) {
	a, b := pair(t, "tcp")
	c := netio.New(a, 0)
	var kept []byte
	seen := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- c.Loop(func(p []byte) (int, error) {
			kept = p
			close(seen)
			return len(p), nil
		})
	}()
	_, _ = b.Write([]byte("secret"))
	<-seen
	c.Wake()
	<-done
	if netio.Poison && string(kept) != string(bytes.Repeat([]byte{0xDB}, 6)) {
		t.Errorf("still there: %q", kept)
	}
}
