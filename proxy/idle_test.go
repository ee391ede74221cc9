package proxy_test

import (
	"fmt"
	"runtime/debug"
	"runtime/metrics"
	"testing"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// stackBytes is what the stacks of all goroutines have taken from the heap.
func stackBytes() int64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}

// TestIdleClientsKeepSmallStacks: what clients ordinarily do needs no more than 4 KiB
// of stack. Go doubles a stack that is too small, and an idle client would keep one
// of 8 KiB until a garbage collection finds most of it unused.
func TestIdleClientsKeepSmallStacks(t *testing.T) {
	if raceEnabled {
		t.Skip("frames are larger under the race detector") // so stacks are as well
	}
	const (
		clients = 300
		most    = 6 << 10 // bytes of stacks for each client: well above 4 KiB, well below 8
	)
	c := realCluster(t)
	batch := func(name, sql string) []byte {
		p := wire.AppendParse(nil, name, []byte(sql), nil)
		p = wire.AppendBindText(p, name)
		p = wire.AppendTarget(p, wire.Describe, 'P', "")
		return wire.AppendSync(wire.AppendExecute(p))
	}
	again := func(name string) []byte { return wire.AppendSync(wire.AppendExecute(wire.AppendBindText(nil, name))) }
	works := []struct {
		name  string
		steps [][]byte
	}{
		{"login", nil},
		{"simple", [][]byte{pgtest.Query("SELECT 1")}},
		{"extended", [][]byte{batch("", "SELECT 1")}},
		{"prepared", [][]byte{batch("s", "SELECT 1"), again("s")}},
		{"transaction", [][]byte{pgtest.Query("BEGIN"), batch("", "SELECT 1"), pgtest.Query("COMMIT")}},
	}
	for servers := range 2 {
		for _, work := range works {
			t.Run(fmt.Sprintf("%d replicas/%s", 2*servers, work.name), func(t *testing.T) {
				h := newHarness(t, harnessOptions{Servers: addrs(c)[:1+2*servers], Proxy: "default_pool_size = 3"})
				h.Client(t).Terminate()                          // the server connections' stacks, and those of the test
				defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would make stacks smaller
				before := stackBytes()
				all := make([]*pgtest.RawClient, clients)
				for i := range all {
					all[i] = h.Client(t)
					for _, step := range work.steps {
						all[i].Send(step)
						all[i].ReadUntilReady()
					}
				}
				if each := (stackBytes() - before) / clients; each > most {
					t.Errorf("%d bytes of stacks for each client, at most %d are allowed", each, most)
				} else {
					t.Logf("%d bytes of stacks for each client", each)
				}
			})
		}
	}
}
