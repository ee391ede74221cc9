package proxy_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// heap is how much memory is in use, after a collection.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestSlowReader: a client that does not read holds up its server, costs no
// memory for what it does not take, and nobody else waits for it.
func TestSlowReader(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 2"})
	slow, other := h.Client(t), h.Client(t)
	other.Query("SELECT 1")
	before := heap()
	const rows = 64 << 10
	slow.Send(pgtest.Query("SELECT repeat('x', 1024) FROM generate_series(1, 65536)"))
	slow.Expect("T D")
	// The server stands still once all buffers on the way are full.
	waits := "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND query LIKE '%65536%')"
	if err := c.Primary.WaitFor(t.Context(), "postgres", waits); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		same(t, other, "SELECT 'other'", "T D(other) C(SELECT 1) Z(I)")
	}
	if grown := heap() - before; grown > 8<<20 {
		t.Errorf("%d bytes are held for a client that does not read", grown)
	}
	for n := 1; ; {
		m := slow.Read()
		if m.Type == wire.DataRow {
			n++
			continue
		}
		if n != rows || m.String() != "C(SELECT 65536)" {
			t.Errorf("%d rows, then %s", n, m)
		}
		break
	}
	slow.Expect("Z(I)")
}

// TestLongMessage: a message of 64 MiB goes both ways without being held.
func TestLongMessage(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	a := h.Client(t)
	const size, piece = 64 << 20, 64 << 10
	block := bytes.Repeat([]byte("0123456789abcdef"), piece/16)
	sum := crc32.NewIEEE()
	before, most := heap(), int64(0)
	sample := func(i int) {
		if i%256 == 0 {
			most = max(most, heap()-before)
		}
	}
	head := binary.BigEndian.AppendUint32([]byte("\x00\x00\x00\x00\x00\x01"), size) // names, formats, one parameter
	_ = a.Conn().SetDeadline(time.Now().Add(60 * time.Second))
	write := func(p []byte) {
		t.Helper()
		if _, err := a.Conn().Write(p); err != nil {
			t.Fatal(err)
		}
	}
	write(pgtest.Join(pgtest.Parse("", "SELECT $1::text"), pgtest.RawMessage(wire.Bind, uint32(4+len(head)+size+2), head)))
	for i := range size / piece {
		block[0] = byte('a' + i%26)
		sum.Write(block)
		write(block)
		sample(i)
	}
	write(pgtest.Join([]byte{0, 0}, pgtest.Execute("", 0), pgtest.Sync()))
	sent := sum.Sum32()
	sum.Reset()
	front := make([]byte, 5+5+5+2+4) // ParseComplete, BindComplete, head of the row
	if _, err := io.ReadFull(a.Conn(), front); err != nil {
		t.Fatal(err)
	}
	if want := "1\x00\x00\x00\x042\x00\x00\x00\x04D"; !strings.HasPrefix(string(front), want) {
		t.Fatalf("the answer begins with %q", front)
	}
	for i := range size / piece {
		if _, err := io.ReadFull(a.Conn(), block); err != nil {
			t.Fatal(err)
		}
		sum.Write(block)
		sample(i)
	}
	if got := sum.Sum32(); got != sent {
		t.Errorf("checksum %x, want %x", got, sent)
	}
	a.Expect("C(SELECT 1) Z(I)")
	if most > 8<<20 {
		t.Errorf("%d bytes were held for a message of %d", most, size)
	}
}

// TestLongStatement: what is too long to be looked at goes to the primary.
func TestLongStatement(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust + "max_query_parse_size = 2000\ndefault_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	b.Query("SELECT 1")
	route := func() string { return value(a, "SHOW pgproxy.route") }
	long := strings.Repeat(" ", 200<<10)
	same(t, a, "SELECT 'short'", "T D(short) C(SELECT 1) Z(I)")
	if got := route(); !strings.HasPrefix(got, "replica ") {
		t.Errorf("a short one went to %s", got)
	}
	same(t, a, "SELECT 'long'"+long, "T D(long) C(SELECT 1) Z(I)")
	if got := route(); !strings.HasPrefix(got, "primary ") || !strings.Contains(got, "too large") {
		t.Errorf("a long one went to %s", got)
	}
	a.Send(pgtest.Extended("SELECT 'long'" + long))
	a.Expect("1 2 T D(long) C(SELECT 1) Z(I)")
	if got := route(); !strings.HasPrefix(got, "primary ") {
		t.Errorf("a long Parse went to %s", got)
	}
	// Long and of more than one read: a named one, used again and again.
	a.Send(pgtest.Parse("long", "SELECT 'named'"+long), pgtest.Sync())
	a.Expect("1 Z(I)")
	for range 3 {
		if got, want := run(a, "long"), "2 D(named) C(SELECT 1) Z(I)"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	// A long one that fails fails for its client alone.
	same(t, a, "SELEC"+long, "E(42601) Z(I)")
	a.Query("DISCARD ALL")
	same(t, b, "SELECT 'b'", "T D(b) C(SELECT 1) Z(I)")
}
