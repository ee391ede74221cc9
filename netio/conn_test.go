package netio_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"pgproxy/netio"
	"pgproxy/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// pair connects two sockets of a kind: tcp, unix, or an in-memory pipe.
func pair(t testing.TB, kind string) (a, b net.Conn) {
	t.Helper()
	if kind == "pipe" {
		a, b = net.Pipe()
	} else {
		addr := "127.0.0.1:0"
		if kind == "unix" {
			addr = t.TempDir() + "/s"
		}
		ln, err := net.Listen(kind, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if a, err = net.Dial(kind, ln.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if b, err = ln.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

// onEach runs a test over each kind of connection, and checks what it leaves.
func onEach(t *testing.T, test func(t *testing.T, kind string)) {
	for _, kind := range []string{"tcp", "unix", "pipe"} {
		t.Run(kind, func(t *testing.T) {
			census := pgtest.NewCensus(t)
			t.Cleanup(census.AssertBaseline)
			test(t, kind)
		})
	}
}

// message is a number of four bytes and so many bytes, all equal to its index.
func message(i, n int) []byte {
	p := binary.BigEndian.AppendUint32(nil, uint32(n))
	return append(p, bytes.Repeat([]byte{byte(i)}, n)...)
}

// collector is a handler that takes messages apart.
type collector struct {
	got    []string
	shown  int // most bytes shown at once
	notify chan struct{}
}

func (m *collector) handle(p []byte) (used int, err error) {
	m.shown = max(m.shown, len(p))
	for len(p)-used >= 4 {
		n := int(binary.BigEndian.Uint32(p[used:]))
		if len(p)-used < 4+n {
			break
		}
		body := p[used+4 : used+4+n]
		if n > 0 && bytes.Count(body, body[:1]) != n {
			return used, fmt.Errorf("message %d is torn", len(m.got))
		}
		m.got = append(m.got, fmt.Sprintf("%x*%d", body[:min(n, 1)], n))
		used += 4 + n
	}
	if m.notify != nil {
		m.notify <- struct{}{}
	}
	return used, nil
}

func names(sizes []int) (all []string, stream []byte) {
	for i, n := range sizes {
		p := message(i, n)
		stream = append(stream, p...)
		all = append(all, fmt.Sprintf("%x*%d", p[4:min(5, len(p))], n))
	}
	return all, stream
}

// TestAnyCutGivesTheSame: how the stream arrives changes nothing, whatever was
// preloaded.
func TestAnyCutGivesTheSame(t *testing.T) {
	const limit = 300 << 10
	onEach(t, func(t *testing.T, kind string) {
		for seed := range uint64(60) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			var sizes []int
			for range 1 + rnd.IntN(30) {
				around := []int{0, 1, 100, netio.CarryCopy - 4, netio.SmallBuffer - 4, netio.LargeBuffer - 4, limit - 5}[rnd.IntN(7)]
				sizes = append(sizes, max(0, min(limit-5, around+rnd.IntN(5)-2)))
			}
			want, stream := names(sizes)
			a, b := pair(t, kind)
			c := netio.New(a, limit)
			pre := rnd.IntN(len(stream) + 1)
			if rnd.IntN(2) == 0 {
				pre = min(pre, rnd.IntN(20))
			}
			c.Preload(stream[:pre])
			var wg sync.WaitGroup
			wg.Go(func() {
				for rest := stream[pre:]; len(rest) > 0; {
					n := min(len(rest), 1+rnd.IntN([]int{3, 1000, netio.SmallBuffer + 1, 4 * netio.LargeBuffer}[rnd.IntN(4)]))
					if _, err := b.Write(rest[:n]); err != nil {
						t.Errorf("write: %v", err)
						break
					}
					rest = rest[n:]
				}
				_ = b.Close()
			})
			m := new(collector)
			err := loopToEnd(c, m.handle)
			wg.Wait()
			if !errors.Is(err, io.EOF) || fmt.Sprint(m.got) != fmt.Sprint(want) {
				t.Fatalf("seed %d: %v\ngot  %v\nwant %v", seed, err, m.got, want)
			}
			if buffer, _ := c.Pinned(); buffer != 0 {
				t.Errorf("%d bytes of buffer are kept behind the end", buffer)
			}
			_ = a.Close()
		}
	})
}

// loopToEnd runs Loop beside what an owner does about ends that raise no edge.
func loopToEnd(c *netio.Conn, h netio.Handler) error {
	done := make(chan struct{})
	var wg sync.WaitGroup
	var ended bool
	wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if c.Probe() {
					ended = true
					c.Wake()
					return
				}
			}
		}
	})
	err := c.Loop(h)
	close(done)
	wg.Wait()
	if ended && errors.Is(err, os.ErrDeadlineExceeded) {
		return io.EOF
	}
	return err
}

func TestCutAtEveryByte(t *testing.T) {
	want, stream := names([]int{3, 0, 5})
	for at := range len(stream) + 1 {
		a, b := net.Pipe()
		c, m := netio.New(a, 0), new(collector)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = b.Write(stream[:at])
			_, _ = b.Write(stream[at:])
			_ = b.Close()
		})
		if err := c.Loop(m.handle); !errors.Is(err, io.EOF) || fmt.Sprint(m.got) != fmt.Sprint(want) {
			t.Errorf("cut at %d: %v, %v", at, m.got, err)
		}
		wg.Wait()
		_ = a.Close()
	}
}

func TestEndInsideAMessage(t *testing.T) {
	onEach(t, func(t *testing.T, kind string) {
		a, b := pair(t, kind)
		c, m := netio.New(a, 0), &collector{notify: make(chan struct{}, 10)}
		done := make(chan error, 1)
		go func() { done <- c.Loop(m.handle) }()
		_, _ = b.Write(message(0, 10)[:7])
		<-m.notify
		_ = b.Close()
		if err := <-done; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("error %v", err)
		}
	})
}

// TestTooLong: a message as long as the limit is taken, a longer one not as soon
// as so much of it has come.
func TestTooLong(t *testing.T) {
	for _, limit := range []int{netio.SmallBuffer, 20_000, netio.LargeBuffer, 300_000} {
		onEach(t, func(t *testing.T, kind string) {
			for _, size := range []int{limit, limit + 1} {
				a, b := pair(t, kind)
				c, m := netio.New(a, limit), new(collector)
				var wg sync.WaitGroup
				wg.Go(func() {
					_, _ = b.Write(message(1, size-4)[:limit])
					if size == limit {
						_ = b.Close()
					}
				})
				err := loopToEnd(c, m.handle)
				if size == limit && (!errors.Is(err, io.EOF) || len(m.got) != 1) {
					t.Errorf("a message as long as the limit %d: %v", limit, err)
				}
				if size > limit && !errors.Is(err, netio.ErrTooLong) {
					t.Errorf("a message longer than the limit %d: %v", limit, err)
				}
				if m.shown > max(limit, netio.LargeBuffer) {
					t.Errorf("%d bytes were kept, the limit is %d", m.shown, limit)
				}
				_ = a.Close()
				_ = b.Close()
				wg.Wait()
			}
		})
	}
}

func TestHandlerErrorEndsLoop(t *testing.T) {
	onEach(t, func(t *testing.T, kind string) {
		errStop := errors.New("stop")
		a, b := pair(t, kind)
		c := netio.New(a, 0)
		go func() { _, _ = b.Write([]byte("x")) }()
		if err := c.Loop(func([]byte) (int, error) { return 0, errStop }); !errors.Is(err, errStop) {
			t.Errorf("error %v", err)
		}
		c.Preload([]byte("y"))
		if err := c.Loop(func(p []byte) (int, error) { return len(p), fmt.Errorf("%s %w", p, errStop) }); err.Error() != "y stop" {
			t.Errorf("second Loop: %v", err)
		}
	})
}

// TestParkedPinsNothing: an idle connection, or one that waits for the rest of a
// short message, has no buffer.
func TestParkedPinsNothing(t *testing.T) {
	for _, kind := range []string{"tcp", "unix"} {
		for _, left := range []int{0, 1, netio.CarryCopy, netio.CarryCopy + 1} {
			a, b := pair(t, kind)
			c, m := netio.New(a, 0), &collector{notify: make(chan struct{}, 10)}
			done := make(chan error, 1)
			go func() { done <- c.Loop(m.handle) }()
			p := message(0, 10)
			p = append(p, message(1, netio.SmallBuffer-100)[:left]...)
			_, _ = b.Write(p)
			<-m.notify
			c.Wake()
			<-done // what parking keeps, the end of Loop does not change but for the buffer
			buffer, carry := c.Pinned()
			if buffer != 0 || left <= netio.CarryCopy && carry < left || carry > netio.CarryCopy+1024 {
				t.Errorf("%d bytes left over: %d of buffer and %d carried", left, buffer, carry)
			}
		}
	}
}

func TestWake(t *testing.T) {
	onEach(t, func(t *testing.T, kind string) {
		t.Run("parked", func(t *testing.T) {
			a, b := pair(t, kind)
			c, m := netio.New(a, 0), &collector{notify: make(chan struct{}, 10)}
			done := make(chan error, 1)
			go func() { done <- c.Loop(m.handle) }()
			_, _ = b.Write(message(0, 1))
			<-m.notify
			c.Wake()
			if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("error %v", err)
			}
		})
		t.Run("before", func(t *testing.T) {
			a, _ := pair(t, kind)
			c := netio.New(a, 0)
			c.Wake()
			if err := c.Loop(new(collector).handle); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("error %v", err)
			}
		})
	})
}

// TestStopWhileThePeerNeverPauses: each read fills its buffer, so Loop never
// parks; it must notice all the same.
func TestStopWhileThePeerNeverPauses(t *testing.T) {
	for _, c := range []struct {
		name string
		stop func(*netio.Conn)
		want error
	}{
		{"wake", (*netio.Conn).Wake, os.ErrDeadlineExceeded},
		{"close", func(c *netio.Conn) {
			go func() { _ = c.Close() }() // ends when the handler has returned
			for c.Write([]byte("x")) == nil {
			}
		}, net.ErrClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			onEach(t, func(t *testing.T, kind string) {
				a, b := pair(t, kind)
				conn := netio.New(a, 0)
				var wg sync.WaitGroup
				wg.Go(func() {
					p := make([]byte, 1<<20)
					for {
						if _, err := b.Write(p); err != nil {
							return
						}
					}
				})
				calls, after := 0, 0
				err := conn.Loop(func(p []byte) (int, error) {
					if calls++; calls == 3 {
						c.stop(conn)
					}
					if calls > 3 {
						after++
					}
					if after > 100 {
						return 0, errors.New("Loop goes on")
					}
					return len(p), nil
				})
				if !errors.Is(err, c.want) || after > 0 {
					t.Errorf("error %v after %d more calls", err, after)
				}
				_ = a.Close()
				_ = b.Close()
				wg.Wait()
			})
		})
	}
}

func TestCloseWhileParked(t *testing.T) {
	onEach(t, func(t *testing.T, kind string) {
		a, b := pair(t, kind)
		c, m := netio.New(a, 0), &collector{notify: make(chan struct{}, 10)}
		done := make(chan error, 1)
		go func() { done <- c.Loop(m.handle) }()
		_, _ = b.Write(message(0, 1))
		<-m.notify
		_ = c.Close()
		if err := <-done; err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if err := c.Loop(m.handle); err == nil {
			t.Error("Loop on a closed connection")
		}
		if err := c.Write([]byte("x")); err == nil {
			t.Error("Write on a closed connection")
		}
		if kind != "pipe" && !c.Ended() {
			t.Error("a closed connection has not ended")
		}
	})
}

// TestProbeFindsTheEnd that came together with the last bytes.
func TestProbeFindsTheEnd(t *testing.T) {
	a, b := pair(t, "tcp")
	c := netio.New(a, 0)
	if c.Probe() || c.Ended() {
		t.Error("a fresh connection has ended")
	}
	_, _ = b.Write([]byte("last"))
	_ = b.Close()
	fin := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- c.Loop(func(p []byte) (int, error) {
			<-fin
			return len(p), nil
		})
	}()
	// All of it has come before the first read returns to the handler's caller.
	for !peekedEnd(a) {
	}
	close(fin)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for found := false; !found; {
		select {
		case err := <-done:
			if !errors.Is(err, io.EOF) { // the edge came late enough
				t.Errorf("error %v", err)
			}
			return
		case <-tick.C:
			found = c.Probe()
		}
	}
	c.Wake()
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// peekedEnd reports whether nothing but the end is left to read from a.
func peekedEnd(a net.Conn) bool { return netio.New(a, 0).Ended() }

func TestProbeAsksOncePerQuietPeriod(t *testing.T) {
	a, b := pair(t, "tcp")
	c, m := netio.New(a, 0), &collector{notify: make(chan struct{}, 10)}
	done := make(chan error, 1)
	go func() { done <- c.Loop(m.handle) }()
	_, _ = b.Write(message(0, 1))
	<-m.notify
	for range 5 {
		if c.Probe() {
			t.Error("a live connection has ended")
		}
	}
	c.Wake()
	<-done
}
