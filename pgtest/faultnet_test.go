package pgtest

import (
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// through makes a relay in front of a server and connects through it: near is
// the dialler's end, far the server's.
func through(t *testing.T) (relay *Relay, near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	relay = NewRelay(t, ln.Addr().String())
	near, err = net.Dial("tcp", relay.Addr())
	must(t, err)
	far, err = ln.Accept()
	must(t, err)
	t.Cleanup(func() {
		_ = near.Close()
		_ = far.Close()
	})
	return relay, near, far
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	_, err := io.WriteString(conn, text)
	must(t, err)
}

func receive(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, len(want))
	if n, err := io.ReadFull(conn, buf); err != nil || string(buf) != want {
		t.Fatalf("received %q, %v, want %q", buf[:n], err, want)
	}
}

// receiveEnd reads to the end and returns what came before it, and the end.
func receiveEnd(conn net.Conn) (string, error) {
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	all, err := io.ReadAll(conn)
	return string(all), err
}

func silent(t *testing.T, conn net.Conn, d time.Duration) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(d))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !isTimeout(err) {
		t.Fatalf("expected silence, got %d bytes, %v", n, err)
	}
}

func TestRelayPassesBytes(t *testing.T) {
	relay, near, far := through(t)
	send(t, near, "there")
	receive(t, far, "there")
	send(t, far, "and back")
	receive(t, near, "and back")
	if relay.Accepted() != 1 || relay.Active() != 1 || relay.Bytes(ToServer) != 5 || relay.Bytes(ToClient) != 8 {
		t.Errorf("accepted %d, active %d, bytes %d and %d", relay.Accepted(), relay.Active(), relay.Bytes(ToServer), relay.Bytes(ToClient))
	}
	must(t, closeWrite(near)) // one direction ends, the other does not
	if _, err := receiveEnd(far); err != nil {
		t.Error(err)
	}
	send(t, far, "still")
	receive(t, near, "still")
	must(t, far.Close())
	if _, err := receiveEnd(near); err != nil {
		t.Error(err)
	}
	eventually(t, "the end of the link", func() bool { return relay.Active() == 0 })
}

func TestRelayPassesResets(t *testing.T) {
	_, near, far := through(t)
	send(t, near, "x")
	receive(t, far, "x")
	must(t, reset(far))
	if _, err := receiveEnd(near); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the end is %v, want a reset", err)
	}
}

func TestRelayLatency(t *testing.T) {
	relay, near, far := through(t)
	const latency = 60 * time.Millisecond
	relay.Set(ToServer, Fault{Latency: latency})
	send(t, near, "0") // the read that waits may not know of the fault yet
	receive(t, far, "0")
	began := time.Now()
	for range 10 {
		send(t, near, "x")
	}
	receive(t, far, "xxxxxxxxxx")
	if d := time.Since(began); d < latency {
		t.Errorf("it took %s, less than %s", d, latency)
	}
	began = time.Now()
	send(t, far, "fast")
	receive(t, near, "fast")
	if d := time.Since(began); d > 20*latency {
		t.Errorf("the other way took %s", d)
	}
}

func TestRelayPieces(t *testing.T) {
	relay, near, far := through(t)
	relay.Set(ToClient, Fault{Size: 1, Pause: 2 * time.Millisecond})
	send(t, far, "piece by piece")
	_ = near.SetReadDeadline(time.Now().Add(20 * time.Second))
	var got string
	reads := 0
	buf := make([]byte, 100)
	for len(got) < len("piece by piece") {
		n, err := near.Read(buf)
		must(t, err)
		got += string(buf[:n])
		reads++
	}
	if got != "piece by piece" || reads < 5 {
		t.Errorf("%q in %d reads", got, reads)
	}
}

func TestRelayBlackhole(t *testing.T) {
	relay, near, far := through(t)
	relay.SetBoth(Fault{Blackhole: true})
	send(t, near, "lost")
	silent(t, far, 30*time.Millisecond)
	must(t, near.Close())
	silent(t, far, 30*time.Millisecond) // not even FIN
	relay.Heal()
	if got, err := receiveEnd(far); err != nil || got != "" {
		t.Errorf("after healing: %q, %v", got, err)
	}
}

func TestRelayStall(t *testing.T) {
	relay, near, far := through(t)
	relay.Set(ToServer, Fault{Stall: true})
	const much = 64 << 20
	sent := make(chan error, 1)
	go func() {
		_, err := near.Write(make([]byte, much))
		sent <- err
	}()
	select {
	case err := <-sent:
		t.Fatalf("64 MiB went into a stalled relay: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	relay.Heal()
	if n, err := io.CopyN(io.Discard, far, much); err != nil {
		t.Errorf("%d bytes came, %v", n, err)
	}
	must(t, <-sent)
}

func TestRelayCutAfter(t *testing.T) {
	for _, tt := range []struct {
		name  string
		reset bool
	}{{"fin", false}, {"reset", true}} {
		t.Run(tt.name, func(t *testing.T) {
			relay, near, far := through(t)
			done := relay.CutAfter(ToClient, 7, tt.reset)
			send(t, near, "question that nobody reads") // makes a plain close a reset
			send(t, far, "12345")
			receive(t, near, "12345")
			send(t, far, "67890")
			<-done
			got, err := receiveEnd(near)
			if tt.reset {
				if err == nil || !strings.Contains(err.Error(), "reset") {
					t.Errorf("ended with %v, want a reset", err)
				}
			} else if got != "67" || err != nil {
				t.Errorf("%q, %v, want the rest up to byte 7 and the end", got, err)
			}
			if relay.Bytes(ToClient) != 7 {
				t.Errorf("%d bytes passed", relay.Bytes(ToClient))
			}
			if relay.Active() != 0 {
				t.Error("the link is still there")
			}
		})
	}
}

func TestRelayEndsAll(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*Relay)
		want string // "" is FIN
	}{
		{"reset", (*Relay).ResetAll, "reset"},
		{"close", (*Relay).CloseAll, ""},
		{"relay closed", (*Relay).Close, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			relay, near, far := through(t)
			send(t, near, "x")
			receive(t, far, "x")
			tt.end(relay)
			for _, conn := range []net.Conn{near, far} {
				_, err := receiveEnd(conn)
				if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("ended with %v, want %q", err, tt.want)
				}
			}
		})
	}
}

func TestRelayHalfClose(t *testing.T) {
	relay, near, far := through(t)
	send(t, near, "x")
	receive(t, far, "x")
	relay.HalfClose(ToServer)
	if got, err := receiveEnd(far); got != "" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	send(t, far, "answer")
	receive(t, near, "answer")
}

func TestRelayRefuse(t *testing.T) {
	relay, near, far := through(t)
	relay.Refuse()
	if conn, err := net.Dial("tcp", relay.Addr()); err == nil {
		_ = conn.Close()
		t.Error("a relay that refuses took a connection")
	}
	send(t, near, "old ones stay")
	receive(t, far, "old ones stay")
	relay.Listen()
	conn, err := net.Dial("tcp", relay.Addr())
	must(t, err)
	must(t, conn.Close())
}

func TestRelayWithoutTarget(t *testing.T) {
	ports, err := takePorts(1)
	must(t, err)
	ports[0].release() // nobody listens there now
	relay := NewRelay(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0].number)))
	conn, err := net.Dial("tcp", relay.Addr())
	if err == nil { // the reset may come before the dial is done
		defer conn.Close()
		_, err = receiveEnd(conn)
	}
	if err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the end is %v, want a reset", err)
	}
}

func TestRelayInFrontOfPostgreSQL(t *testing.T) {
	c := Shared(t)
	relay := NewRelay(t, c.Primary.Addr())
	relay.SetBoth(Fault{Size: 3})
	client := DialRaw(t, relay.Addr())
	client.Login(Superuser, SuperuserPassword, "database", "postgres")
	if got := client.Query("SELECT 'through'"); got != "T D(through) C(SELECT 1) Z(I)" {
		t.Error(got)
	}
}
