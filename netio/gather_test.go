package netio_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"pgproxy/netio"
)

// TestGatherIsInOrder whatever is relayed and made, and whatever the slices share.
func TestGatherIsInOrder(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		buf := make([]byte, 200)
		for i := range buf {
			buf[i] = byte(i)
		}
		var g netio.Gather
		var want []byte
		at := 0
		for range rnd.IntN(12) {
			n := rnd.IntN(20)
			if at+n > len(buf) {
				at = 0
			}
			switch rnd.IntN(5) {
			case 0:
				*g.Made() = append(*g.Made(), "made"...)
				want = append(want, "made"...)
				continue
			case 1:
				at = rnd.IntN(len(buf) - n) // not a neighbour
			case 2:
				g.Relay(buf[at : at+n : at+n])
			default:
				g.Relay(buf[at : at+n])
			}
			if got := g.Bytes(); len(got) == len(want)+n {
				want = append(want, buf[at:at+n]...)
				at += n
			}
			if !bytes.Equal(g.Bytes(), want) || g.Len() != len(want) {
				t.Fatalf("seed %d: got %v, want %v", seed, g.Bytes(), want)
			}
		}
		g.Reset()
		if g.Len() != 0 || len(g.Bytes()) != 0 {
			t.Fatal("not empty after Reset")
		}
	}
}

// TestGatherNeighboursAreNotCopied: a run of the read buffer is one slice of it.
func TestGatherNeighboursAreNotCopied(t *testing.T) {
	buf := []byte("aabbcc")
	var g netio.Gather
	for i := 0; i < len(buf); i += 2 {
		g.Relay(buf[i : i+2])
	}
	if p := g.Bytes(); &p[0] != &buf[0] || len(p) != len(buf) {
		t.Error("copied")
	}
}

// TestGatherClippedNeighbour: a slice that may not grow over its neighbour.
func TestGatherClippedNeighbour(t *testing.T) {
	buf := []byte("aabbcc")
	var g netio.Gather
	g.Relay(buf[0:2:3])
	g.Relay(buf[2:6])
	if s := string(g.Bytes()); s != "aabbcc" {
		t.Errorf("got %q", s)
	}
}

func TestGatherGivesUpMuchMemory(t *testing.T) {
	var g netio.Gather
	*g.Made() = make([]byte, 2*netio.SmallBuffer)
	g.Reset()
	if cap(*g.Made()) != 0 {
		t.Error("kept")
	}
}
