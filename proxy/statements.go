package proxy

import (
	"container/list"
	"hash/maphash"
	"strconv"
	"sync"
	"unsafe"

	"pgproxy/backend"
	"pgproxy/router"
)

// Statements that no client has any more are remembered for those who will come
// back, within these bounds.
const (
	maxUnused      = 4096
	maxUnusedBytes = 16 << 20 // of their texts in all
	maxUnusedText  = 64 << 10 // of one text
)

// statement is a named prepared statement that any number of clients have.
type statement struct {
	backend.Statement
	plan    *router.Plan // by the text alone: clients of all databases share it
	edition edition
	key     string // text, NUL, parameter types, edition

	// Guarded by registry.mu.
	refs   int                   // clients' names for it
	unused *list.Element         // its place in registry.unused while refs is 0
	proved map[proofSum]struct{} // for whom a server has accepted it
}

// proof says for whom a server has accepted a statement: the same text may be
// wrong in another database, for another user or with another search_path.
type proof struct{ database, user, settings string }

// proofSum stands for a proof, whose texts clients choose the length of.
type proofSum struct {
	hash uint64
	size int
}

// maxProofs bounds the proofs of one statement.
const maxProofs = 64

// registry knows every statement by its text, parameter types and edition, so
// that clients that prepare the same share it on the servers.
type registry struct {
	seed maphash.Seed // set at construction

	// Guarded by mu.
	mu     sync.Mutex
	byKey  map[string]*statement
	next   uint64
	unused list.List // of *statement, the one that is unused for longest first
	bytes  int       // of the unused
	total  int64     // of all, with what each takes beside its text
	limit  int64     // of total; 0 is none
}

// overhead is what a statement takes beside its text: itself, its plan, its place in
// maps; in bytes, by estimate.
const overhead = 512

// setLimit bounds what all statements may take, in bytes; 0 is no bound.
func (r *registry) setLimit(bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limit = bytes
}

// roomLocked makes room for a new statement with this key, and reports whether
// there is any.
func (r *registry) roomLocked(key int) bool {
	need := int64(key + overhead)
	for r.limit > 0 && r.total+need > r.limit {
		e := r.unused.Front()
		if e == nil {
			return false
		}
		r.dropUnusedLocked(e.Value.(*statement))
	}
	return true
}

// addLocked takes in a new statement.
func (r *registry) addLocked(st *statement) {
	r.byKey[st.key] = st
	r.total += int64(len(st.key) + overhead)
}

// dropUnusedLocked forgets a statement that nobody has.
func (r *registry) dropUnusedLocked(st *statement) {
	r.usedLocked(st)
	r.dropLocked(st)
}

func (r *registry) dropLocked(st *statement) {
	delete(r.byKey, st.key)
	r.total -= int64(len(st.key) + overhead)
}

func newRegistry() *registry {
	return &registry{seed: maphash.MakeSeed(), byKey: make(map[string]*statement)}
}

// appendKey appends what a statement is found by.
func appendKey(dst, query, oids []byte, e edition) []byte {
	return e.append(append(append(append(dst, query...), 0), oids...))
}

// get returns the statement for a text, counting one more name for it; nil if it
// is new and there is no room. plan is called for a new one. The bytes are copied.
func (r *registry) get(query, oids []byte, e edition, plan func() *router.Plan) *statement {
	var b [512]byte
	k := appendKey(b[:0], query, oids, e)
	r.mu.Lock()
	if st := r.byKey[string(k)]; st != nil {
		r.takeLocked(st)
		r.mu.Unlock()
		return st
	}
	r.mu.Unlock()
	p := plan() // may parse: not under the mutex
	r.mu.Lock()
	defer r.mu.Unlock()
	if st := r.byKey[string(k)]; st != nil { // somebody was faster
		r.takeLocked(st)
		return st
	}
	if !r.roomLocked(len(k)) {
		return nil
	}
	r.next++
	st := &statement{key: string(k), plan: p, edition: e, refs: 1}
	text := unsafe.Slice(unsafe.StringData(st.key), len(st.key)) // never written to
	types := len(query) + 1
	st.Statement = backend.Statement{
		Name:  string(ownPrefix) + strconv.FormatUint(r.next, 10),
		Query: text[:len(query):len(query)],
		OIDs:  text[types : types+len(oids) : types+len(oids)],
	}
	r.addLocked(st)
	return st
}

// getOwn is get for a statement under a client's name: one that SQL's PREPARE has
// made, whose text query is, or the double of one of the protocol, with its
// parameter types. nil says that there is no room for a new one of the first kind.
func (r *registry) getOwn(name string, query, oids []byte, e edition, sql bool, plan *router.Plan) *statement {
	k := make([]byte, 0, len(name)+len(query)+len(oids)+4)
	k = append(k, 0, byte(len(oids))) // no text begins with a zero byte
	k = appendKey(append(append(k, name...), 0), query, oids, e)
	r.mu.Lock()
	defer r.mu.Unlock()
	if st := r.byKey[string(k)]; st != nil {
		r.takeLocked(st)
		return st
	}
	if sql && !r.roomLocked(len(k)) {
		return nil
	}
	st := &statement{key: string(k), plan: plan, edition: e, refs: 1}
	text := unsafe.Slice(unsafe.StringData(st.key), len(st.key)) // never written to
	at := 2 + len(name) + 1
	types := at + len(query) + 1
	st.Statement = backend.Statement{
		Name: name, Query: text[at : at+len(query) : at+len(query)], OIDs: text[types : types+len(oids) : types+len(oids)],
		Own: true, SQL: sql,
	}
	r.addLocked(st)
	return st
}

// takeLocked counts one name more.
func (r *registry) takeLocked(st *statement) {
	r.usedLocked(st)
	st.refs++
}

// usedLocked takes a statement out of the unused ones, if it is there.
func (r *registry) usedLocked(st *statement) {
	if st.unused != nil {
		r.unused.Remove(st.unused)
		r.bytes -= len(st.key)
		st.unused = nil
	}
}

// put counts one name less.
func (r *registry) put(st *statement) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if st.refs--; st.refs > 0 {
		return
	}
	if len(st.key) > maxUnusedText || st.edition.own != 0 && !st.Own {
		r.dropLocked(st)
		return
	}
	st.unused = r.unused.PushBack(st)
	r.bytes += len(st.key)
	for r.unused.Len() > maxUnused || r.bytes > maxUnusedBytes {
		r.dropUnusedLocked(r.unused.Front().Value.(*statement))
	}
}

// sum is what a proof is remembered by. Nobody can make two that are equal: the
// seed is this process's secret.
func (r *registry) sum(p proof) proofSum {
	var h maphash.Hash
	h.SetSeed(r.seed)
	n := 0
	for _, s := range [...]string{p.database, p.user, p.settings} {
		_, _ = h.WriteString(s) // never fails
		_ = h.WriteByte(0)      // which no name has in it
		n += len(s)
	}
	return proofSum{h.Sum64(), n}
}

// prove notes that a server has accepted a statement.
func (r *registry) prove(st *statement, p proof) {
	sum := r.sum(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	if st.proved == nil || len(st.proved) >= maxProofs {
		st.proved = make(map[proofSum]struct{})
	}
	st.proved[sum] = struct{}{}
}

// isProved reports whether a server has accepted a statement.
func (r *registry) isProved(st *statement, p proof) bool {
	sum := r.sum(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := st.proved[sum]
	return ok
}

// proved returns the statement for a text if a server has accepted it before,
// counting one more name for it; nil if none has.
func (r *registry) proved(query, oids []byte, e edition, p proof) *statement {
	var b [512]byte
	k := appendKey(b[:0], query, oids, e)
	sum := r.sum(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.byKey[string(k)]
	if st == nil {
		return nil
	}
	if _, ok := st.proved[sum]; !ok {
		return nil
	}
	r.takeLocked(st)
	return st
}

// size returns how many statements are known, and what they take in bytes.
func (r *registry) size() (n int, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byKey), r.total
}
