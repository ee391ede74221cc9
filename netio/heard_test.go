package netio

import (
	"net"
	"testing"
	"time"
)

// Who has spoken before we did is told apart from who answers.
func TestHeardFirst(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ours, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	c := New(ours, 1<<10)
	say := func(from net.Conn) {
		t.Helper()
		if _, err := from.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		<-time.After(50 * time.Millisecond) // the kernel's clock has to move
	}
	say(peer)
	say(ours)
	if !c.HeardFirst() {
		t.Error("the peer spoke first")
	}
	say(peer)
	if c.HeardFirst() {
		t.Error("the peer has answered")
	}
}
