package proxy_test

import (
	"crypto/tls"
	"strings"
	"testing"

	"pgproxy/pgtest"
)

// TestPROXYTrusted: who is trusted must send a header, and its word counts.
func TestPROXYTrusted(t *testing.T) {
	real := realCluster(t)
	ca := pgtest.NewCA(t)
	h := newHarness(t, harnessOptions{Servers: addrs(real), Proxy: encrypted("prefer", ca.Issue("localhost", nil)) + "proxy_protocol = [\"127.0.0.0/8\"]\napplication_name_add_host = true\n"})
	header := []byte("PROXY TCP4 192.0.2.7 192.0.2.1 4711 5432\r\n")

	c := pgtest.DialRaw(t, h.Addr)
	c.Send(header)
	c.Login(testUser, testPassword, "database", "app", "application_name", "x")
	if got := h.Server.Sessions(); len(got) != 1 || got[0].Addr != "192.0.2.7:4711" || got[0].LocalAddr != "192.0.2.1:5432" {
		t.Errorf("sessions %+v", got)
	}
	if got := c.Query("SHOW application_name"); !strings.Contains(got, "x - 192.0.2.7:4711") {
		t.Errorf("application_name %s", got)
	}
	c.Terminate()

	c = pgtest.DialRaw(t, h.Addr)
	c.Send(header, sslRequest) // one segment, TLS behind it
	if b := c.ReadAnswer(); b != 'S' {
		t.Fatalf("answer %q", b)
	}
	c.Upgrade(tls.Client(c.Conn(), anyServer()))
	c.Login(testUser, testPassword, "database", "app")
	c.Terminate()

	c = pgtest.DialRaw(t, h.Addr)
	if err := c.TryLogin(testUser, testPassword, "database", "app"); err == nil || err.Code != "08P01" || !strings.Contains(err.Message, "PROXY header: there is none") {
		t.Errorf("without a header: %v", err)
	}
}

// TestPROXYStranger: from others a header is no startup packet.
func TestPROXYStranger(t *testing.T) {
	real := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(real), Proxy: "proxy_protocol = [\"192.0.2.0/24\"]\n"})
	c := pgtest.DialRaw(t, h.Addr)
	c.Send([]byte("PROXY TCP4 192.0.2.7 192.0.2.1 4711 5432\r\n"))
	if msgs := c.ExpectEOF(); len(msgs) != 1 || !strings.Contains(msgs[0].Err().Message, "invalid startup packet") {
		t.Errorf("answer %v", msgs)
	}
	c = h.Client(t)
	if got := h.Server.Sessions(); len(got) == 0 || !strings.HasPrefix(got[len(got)-1].Addr, "127.0.0.1:") {
		t.Errorf("sessions %+v", got)
	}
	c.Terminate()
}
