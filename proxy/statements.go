package proxy

import (
	"strconv"
	"sync"
	"unsafe"

	"pgproxy/backend"
	"pgproxy/router"
)

// maxUnused bounds the statements that are remembered although no client has
// them any more, for those who will come back.
const maxUnused = 4096

// statement is a named prepared statement that any number of clients have.
type statement struct {
	backend.Statement
	plan *router.Plan
	key  string // text, NUL, parameter types

	// Guarded by registry.mu.
	refs   int                // clients' names for it
	proved map[proof]struct{} // for whom a server has accepted it
}

// proof says for whom a server has accepted a statement: the same text may be
// wrong in another database, for another user or with another search_path.
type proof struct{ database, user, settings string }

// maxProofs bounds the proofs of one statement.
const maxProofs = 64

// registry knows every statement by its text and parameter types, so that
// clients that prepare the same share it on the servers.
type registry struct {
	mu     sync.Mutex
	byKey  map[string]*statement
	next   uint64
	unused int
}

func newRegistry() *registry { return &registry{byKey: make(map[string]*statement)} }

// get returns the statement for a text, counting one more name for it. plan is
// called for a new one. The bytes are copied.
func (r *registry) get(query, oids []byte, plan func() *router.Plan) *statement {
	var b [512]byte
	k := append(append(append(b[:0], query...), 0), oids...)
	r.mu.Lock()
	if st := r.byKey[string(k)]; st != nil {
		if st.refs == 0 {
			r.unused--
		}
		st.refs++
		r.mu.Unlock()
		return st
	}
	r.mu.Unlock()
	p := plan() // may parse: not under the mutex
	r.mu.Lock()
	defer r.mu.Unlock()
	if st := r.byKey[string(k)]; st != nil { // somebody was faster
		if st.refs == 0 {
			r.unused--
		}
		st.refs++
		return st
	}
	r.next++
	st := &statement{key: string(k), plan: p, refs: 1}
	text := unsafe.Slice(unsafe.StringData(st.key), len(st.key)) // never written to
	st.Statement = backend.Statement{
		Name:  "pgproxy_" + strconv.FormatUint(r.next, 10),
		Query: text[:len(query):len(query)],
		OIDs:  text[len(query)+1:],
	}
	r.byKey[st.key] = st
	return st
}

// put counts one name less.
func (r *registry) put(st *statement) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if st.refs--; st.refs > 0 {
		return
	}
	if r.unused++; r.unused <= maxUnused {
		return
	}
	for k, st := range r.byKey { // half of them, whichever come first
		if st.refs == 0 {
			delete(r.byKey, k)
			if r.unused--; r.unused <= maxUnused/2 {
				return
			}
		}
	}
}

// prove notes that a server has accepted a statement.
func (r *registry) prove(st *statement, p proof) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if st.proved == nil || len(st.proved) >= maxProofs {
		st.proved = make(map[proof]struct{})
	}
	st.proved[p] = struct{}{}
}

// isProved reports whether a server has accepted a statement.
func (r *registry) isProved(st *statement, p proof) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := st.proved[p]
	return ok
}

// proved returns the statement for a text if a server has accepted it before,
// counting one more name for it; nil if none has.
func (r *registry) proved(query, oids []byte, p proof) *statement {
	var b [512]byte
	k := append(append(append(b[:0], query...), 0), oids...)
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.byKey[string(k)]
	if st == nil {
		return nil
	}
	if _, ok := st.proved[p]; !ok {
		return nil
	}
	if st.refs == 0 {
		r.unused--
	}
	st.refs++
	return st
}

// Len returns how many statements are known.
func (r *registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byKey)
}
