package proxy

import (
	"fmt"
	"strings"
	"testing"

	"pgproxy/router"
)

var noPlan = &router.Plan{}

// use takes a statement and gives it back.
func (r *registry) use(text string) *statement {
	st := r.get([]byte(text), nil, edition{}, func() *router.Plan { return noPlan })
	r.put(st)
	return st
}

// check compares the counts with what they count.
func (r *registry) check(t *testing.T) {
	t.Helper()
	n, size := 0, 0
	for _, st := range r.byKey {
		if (st.refs == 0) != (st.unused != nil) {
			t.Errorf("%d names, in the list: %v", st.refs, st.unused != nil)
		}
		if st.refs == 0 {
			n++
			size += len(st.key)
		}
	}
	if n != r.unused.Len() || size != r.bytes {
		t.Errorf("%d unused of %d bytes, counted %d of %d", n, size, r.unused.Len(), r.bytes)
	}
}

// TestRegistryBounds: what nobody uses is bounded in number and bytes, and what
// was used last stays.
func TestRegistryBounds(t *testing.T) {
	for _, v := range []struct {
		size, want int
	}{
		{10, maxUnused}, {maxUnusedText - 2, maxUnusedBytes / (maxUnusedText - 1)}, {maxUnusedText, 0}, {900 << 10, 0},
	} {
		r := newRegistry()
		pad := strings.Repeat("x", v.size)
		text := func(i int) string { s := fmt.Sprint(i); return s + pad[len(s):] }
		kept := r.get([]byte("in use"), nil, edition{}, func() *router.Plan { return noPlan })
		n := 2*v.want + 50
		for i := range n {
			r.use(text(i))
			r.use(text(0))
		}
		r.check(t)
		if got := r.count() - 1; got != v.want || r.bytes > maxUnusedBytes {
			t.Errorf("texts of %d bytes: %d are kept (%d bytes), want %d", v.size, got, r.bytes, v.want)
		}
		if v.want > 0 && (r.byKey[text(0)+"\x00"] == nil || r.byKey[text(n-1)+"\x00"] == nil || r.byKey[text(1)+"\x00"] != nil) {
			t.Errorf("texts of %d bytes: not those that were used last", v.size)
		}
		if r.byKey[kept.key] != kept {
			t.Error("a statement that is in use is gone")
		}
		r.put(kept)
		r.check(t)
	}
}

// TestRegistryProofs: each part of a proof counts, and its length costs nothing.
func TestRegistryProofs(t *testing.T) {
	r := newRegistry()
	st := r.use("SELECT 1")
	r.prove(st, proof{"db", "user", "search_path\x00a\x00"})
	for _, v := range []struct {
		proof
		want bool
	}{
		{proof{"db", "user", "search_path\x00a\x00"}, true},
		{proof{"db", "user", "search_path\x00b\x00"}, false},
		{proof{"db", "user", ""}, false},
		{proof{"d", "buser", "search_path\x00a\x00"}, false},
		{proof{"db", "other", "search_path\x00a\x00"}, false},
		{proof{"other", "user", "search_path\x00a\x00"}, false},
	} {
		if got := r.isProved(st, v.proof); got != v.want {
			t.Errorf("%q: %v", v.proof, got)
		}
		if got := r.proved([]byte("SELECT 1"), nil, edition{}, v.proof); (got != nil) != v.want {
			t.Errorf("%q: %v", v.proof, got)
		} else if got != nil {
			r.put(got)
		}
	}
	r.check(t)
	for i := range 10 * maxProofs {
		r.prove(st, proof{"db", "user", fmt.Sprint(i)})
		if len(st.proved) > maxProofs {
			t.Fatalf("%d proofs", len(st.proved))
		}
	}
}

func (r *registry) count() int { n, _ := r.size(); return n }
