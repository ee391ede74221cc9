package proxy

import (
	"bytes"
	"encoding/binary"
	"strings"
	"sync/atomic"

	"pgproxy/backend"
	"pgproxy/router"
)

// A Parse has the server analyse a text: it looks names up, infers the types of
// parameters and columns, and turns literals into values, as in
// '2020-01-01'::timestamptz, for which it needs the TimeZone. What comes out stays
// with the prepared statement. Clients share a statement on the servers only if
// the analysis would give each of them the same.

// edition is what an analysis depends on beside its text. Statements of different
// editions are different statements.
type edition struct {
	settings string // the client's own, without those that cannot matter
	catalog  uint64 // changes of the database's catalog before it
	own      uint64 // not 0: of one client alone
}

// append appends what makes the key of a statement one of the edition.
func (e edition) append(dst []byte) []byte {
	if e == (edition{}) {
		return dst
	}
	dst = append(append(append(dst, 0), e.settings...), 0)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, e.catalog), e.own)
}

// irrelevant are settings that no analysis looks at, and that clients change often.
var irrelevant = map[string]bool{
	"application_name": true, "client_min_messages": true, "deadlock_timeout": true, "idle_in_transaction_session_timeout": true,
	"idle_session_timeout": true, "lock_timeout": true, "log_statement": true, "statement_timeout": true, "synchronous_commit": true,
	"transaction_timeout": true, "work_mem": true,
}

// analysisSettings returns the part of a client's settings that an analysis may
// depend on, as a key.
func analysisSettings(s *backend.Settings) string {
	var b strings.Builder
	for _, x := range s.List() {
		if !irrelevant[x.Name] && !strings.HasPrefix(x.Name, "default_transaction_") {
			b.WriteString(x.Name)
			b.WriteByte(0)
			b.WriteString(x.Value)
			b.WriteByte(0)
		}
	}
	return b.String()
}

// edition returns the edition of statements that the client prepares now.
func (s *Session) edition() edition {
	if set := s.settings.Load(); set != s.analysedFor {
		s.analysed, s.analysedFor = analysisSettings(set), set
	}
	return edition{settings: s.analysed, catalog: s.catalog.Load(), own: s.alone}
}

// editionOf is edition for a text: one that says 'now' or 'today' is another
// statement each time that it is parsed.
func (s *Session) editionOf(text []byte) edition {
	e := s.edition()
	if e.own == 0 && saysNow(text) {
		e.own = s.srv.changes.Add(1)
	}
	return e
}

var relativeTimes = [...][]byte{[]byte("now"), []byte("today"), []byte("tomorrow"), []byte("yesterday")}

// saysNow reports whether a literal in a text may be a time that is relative to
// that of the analysis. It errs on that side.
func saysNow(text []byte) bool {
	for {
		i := bytes.IndexByte(text, '\'')
		if i < 0 {
			return false
		}
		text = text[i+1:]
		literal := text
		if end := bytes.IndexByte(text, '\''); end >= 0 {
			literal, text = text[:end], text[end+1:]
		} else {
			text = nil
		}
		for len(literal) > 0 {
			if !letter(literal[0]) {
				literal = literal[1:]
				continue
			}
			n := 1
			for n < len(literal) && letter(literal[n]) {
				n++
			}
			for _, w := range relativeTimes {
				if bytes.EqualFold(literal[:n], w) {
					return true
				}
			}
			literal = literal[n:]
		}
	}
}

func letter(b byte) bool { return b|0x20 >= 'a' && b|0x20 <= 'z' || b >= 0x80 || b == '_' }

// twin returns the statement to use in place of st where the server connection has
// not got it: one of the edition of now, if the client's settings have changed
// since its Parse. What is analysed now must not pass for the analysis of then.
func (s *Session) twin(st *statement) *statement {
	e := s.edition()
	if st.edition.own != 0 || e.own == 0 && e.settings == st.edition.settings || s.lease.HasStatement(&st.Statement) {
		return st
	}
	e.catalog = st.edition.catalog
	t := s.srv.registry.get(st.Query, st.OIDs, e, func() *router.Plan { return st.plan })
	if t == nil {
		return st // no memory left for the difference
	}
	s.srv.registry.put(t) // it is remembered for a while, which is all that is needed
	return t
}

// altered is who is told when the catalog has changed.
type altered struct {
	prover  *router.Prover // nil: nobody proves statements by the catalog
	catalog *atomic.Uint64
}

// changed tells them of a change at this time, which has been acknowledged or only
// sent.
func (d *altered) changed(at int64, acknowledged bool) {
	d.catalog.Add(1)
	if d.prover != nil {
		d.prover.Changed(at, acknowledged)
	}
}

// alters takes note of a statement that changes the catalog. A temporary object
// is there for this client alone, as long as it has the connection.
func (s *Session) alters(e router.Effect) {
	if e.Any(router.EffectTemp) {
		s.alone = s.srv.changes.Add(1)
		if !e.Any(router.EffectMulti) {
			return
		}
	}
	d := &altered{catalog: s.catalog}
	if !e.Any(router.EffectTemp) {
		d.prover = s.prover
	}
	d.changed(router.Nanotime(), false)
	s.ddl.Store(d)
}

// catalogOf returns the count of changes of a database's catalog, as far as they
// have come through the proxy.
func (s *Server) catalogOf(dbname string) *atomic.Uint64 {
	n, _ := s.catalogs.LoadOrStore(dbname, new(atomic.Uint64))
	return n.(*atomic.Uint64)
}
