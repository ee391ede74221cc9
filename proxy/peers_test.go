package proxy_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// peerHarnesses are proxies that are peers. The one that is closed last looks for
// what is left of all.
func peerHarnesses(t testing.TB, server string, ids ...int) (out []*harness) {
	t.Helper()
	for i, id := range ids {
		opt := harnessOptions{Servers: []string{server}, Proxy: fmt.Sprintf("peer_id = %d\n", id)}
		if i > 0 {
			opt.Untidy = "its peers go on"
		}
		out = append(out, newHarness(t, opt))
	}
	return out
}

// meet tells a proxy where its peers are, by their peer_id.
func (h *harness) meet(t testing.TB, id int, more string, peers map[int]string, servers ...string) {
	t.Helper()
	tables := ""
	for peer, addr := range peers {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		tables += fmt.Sprintf("[peers.%d]\nhost = %q\nport = %s\n%s\n", peer, host, port, more)
	}
	h.apply(t, harnessOptions{Servers: servers, Proxy: fmt.Sprintf("peer_id = %d\n", id), More: tables})
}

// TestPeers: a cancel request that reaches another process than its client's gets
// there (faults.md, B-26).
func TestPeers(t *testing.T) {
	c := realCluster(t)
	server := addrs(c)[0]
	all := peerHarnesses(t, server, 1, 16383, 3)
	one, two, other := all[0], all[1], all[2]
	peers := map[int]string{1: one.Addr, 16383: two.Addr}
	one.meet(t, 1, "", peers, server)
	two.meet(t, 16383, "", peers, server)
	other.meet(t, 3, "", peers, server) // which they do not know
	for _, protocol := range []uint32{wire.Protocol30, wire.Protocol32} {
		for _, v := range []struct {
			name    string
			at, via *harness
		}{{"first", one, two}, {"second", two, one}, {"from a third", two, other}, {"direct", one, one}} {
			a := pgtest.DialRaw(t, v.at.Addr)
			a.Send(pgtest.StartupMessage(protocol, "user", testUser, "database", "app"))
			if e := a.Authenticate(testUser, testPassword); e != nil {
				t.Fatal(e)
			}
			tag := fmt.Sprintf("peers %s %x", v.name, protocol)
			a.Send(pgtest.Query("SELECT '" + tag + "' FROM pg_sleep(60)"))
			waitSleeping(t, c, tag)
			unknown := strings.Count(v.at.Log.Text(), "unknown key")
			wrong := append([]byte(nil), a.Secret...)
			wrong[0] ^= 1
			sendCancel(t, v.via, pgtest.CancelRequest(a.PID, wrong))
			if n := strings.Count(v.at.Log.Text(), "unknown key"); n != unknown+1 {
				t.Errorf("%s: a wrong secret was not refused by the client's own process", tag)
			}
			a.ExpectSilence(50 * time.Millisecond)
			sendCancel(t, v.via, pgtest.CancelRequest(a.PID, a.Secret))
			if got := pgtest.Trace(a.ReadUntilReady()); !strings.HasSuffix(got, "E(57014) Z(I)") {
				t.Errorf("%s: got %s", tag, got)
			}
			a.Terminate()
		}
	}
	// Nobody knows the third.
	a := other.Client(t)
	a.Send(pgtest.Query("SELECT 'third' FROM pg_sleep(60)"))
	waitSleeping(t, c, "third")
	sendCancel(t, one, pgtest.CancelRequest(a.PID, a.Secret))
	a.ExpectSilence(50 * time.Millisecond)
	a.Cancel(other.Addr)
	a.ReadUntilReady()
}

// TestPeerKeys: the key has the peer in its process number, which is none of a
// server's, and all the rest is random.
func TestPeerKeys(t *testing.T) {
	s := newSlowServer(t)
	h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: trust + "peer_id = 5\n"})
	pids, secrets := make(map[uint32]bool), make(map[string]bool)
	const n = 50
	for range n {
		a := h.Client(t)
		if a.PID&(1<<14-1) != 5 || a.PID <= 1<<22 || a.PID >= 1<<31 || a.Secret[3]&3 != 3 {
			t.Errorf("the key is %#x % x", a.PID, a.Secret)
		}
		pids[a.PID], secrets[string(a.Secret)] = true, true
	}
	if len(pids) != n || len(secrets) != n {
		t.Errorf("%d process numbers and %d secrets of %d clients", len(pids), len(secrets), n)
	}
}

// TestPeersInALoop: peers that do not agree who is who pass a request on three
// times.
func TestPeersInALoop(t *testing.T) {
	s := newSlowServer(t)
	all := peerHarnesses(t, s.Addr(), 1, 3)
	one, three := all[0], all[1]
	to := pgtest.NewRelay(t, three.Addr)
	one.meet(t, 1, "", map[int]string{2: to.Addr()}, s.Addr())
	three.meet(t, 3, "", map[int]string{2: one.Addr}, s.Addr())
	sendCancel(t, one, pgtest.CancelRequest(1<<24|2, []byte{1, 2, 3, 0xff}))
	if n := to.Accepted(); n != 2 {
		t.Errorf("it came %d times, want 2", n)
	}
	if !strings.Contains(three.Log.Text(), "passed on too often") {
		t.Error("nobody says why")
	}
}

// TestPeerBounds: pool_size requests are on their way to a peer at once, others
// wait, and none for longer than cancel_wait_timeout.
func TestPeerBounds(t *testing.T) {
	s := newSlowServer(t)
	h := peerHarnesses(t, s.Addr(), 1)[0]
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	h.meet(t, 1, "pool_size = 2", map[int]string{2: silent.Addr().String()}, s.Addr())
	var clients []*pgtest.RawClient
	for range 5 {
		x := pgtest.DialRaw(t, h.Addr)
		x.Send(pgtest.CancelRequest(1<<24|2, []byte{1, 2, 3, 0xff}))
		clients = append(clients, x)
	}
	eventually(t, 10*time.Second, "two are sent and three wait", func() bool {
		st := h.Server.PeerStats(2)
		return st.Sent == 2 && st.Waiting == 3 && st.Connecting == 0
	})
	for range clients { // each that ends lets another one in
		nc, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.Close()
	}
	for _, x := range clients {
		x.ExpectEOF()
		x.Close()
	}
	eventually(t, 10*time.Second, "nothing is left", func() bool { return h.Server.PeerStats(2).Sent == 0 })

	h.apply(t, harnessOptions{
		Servers: []string{s.Addr()}, Proxy: "peer_id = 1\ncancel_wait_timeout = \"200ms\"\n",
		More: fmt.Sprintf("[peers.2]\nhost = \"127.0.0.1\"\nport = %d\npool_size = 1\n", silent.Addr().(*net.TCPAddr).Port),
	})
	clients = nil
	for range 3 {
		x := pgtest.DialRaw(t, h.Addr)
		x.Send(pgtest.CancelRequest(1<<24|2, []byte{1, 2, 3, 0xff}))
		clients = append(clients, x)
	}
	for _, x := range clients {
		x.ExpectEOF()
		x.Close()
	}
	eventually(t, 10*time.Second, "nothing is left", func() bool {
		st := h.Server.PeerStats(2)
		return st.Sent == 0 && st.Waiting == 0 && st.Connecting == 0
	})
}
