package proxy

import (
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/backend"
	"pgproxy/pool"
	"pgproxy/router"
	"pgproxy/wire"
)

// Shadow mode: the primary answers everything. A share of the statements that are
// proved to read run on a replica as well, later and by connections of their own,
// and the rows are compared. No client waits for that or notices it.
//
// Rows are compared as a bag, without their order: each has a hash, and the hashes
// are added up. The replica is asked when it is known to show what the primary
// showed. Where it answers otherwise the primary is asked again: only if that still
// answers as it did to the client is the replica at fault. If not, the data has
// changed in between, or the statement never answers twice alike.

// Bounds of shadow mode.
const (
	maxShadows     = 4 // comparisons at once
	maxShadowText  = 64 << 10
	maxShadowShape = 1000
	shadowWait     = 2 * time.Second  // for a replica to show what the primary showed
	shadowTimeout  = 30 * time.Second // of one comparison
	shadowIdle     = 30 * time.Second
)

// ShadowStat is what has come of the comparisons of one shape in one database.
type ShadowStat struct {
	Database string // as clients ask for it
	Shape    string
	Runs     uint64 // comparisons
	Same     uint64 // the replica answered as the primary
	Differs  uint64 // it did not
	Changed  uint64 // it cannot be told: the primary did not answer twice alike
	Failed   uint64 // the replica refused it, the primary did not
	Skipped  uint64 // no replica was ready in time, or too many comparisons were under way
	Primary  time.Duration
	Replica  time.Duration // both in all, of those that are Same
	Last     time.Time     // of the last one that differs or failed
	Error    string        // of the last one that failed
}

// shadow compares.
type shadow struct {
	running atomic.Int32
	guests  *pool.Guests   // counts the connections
	ending  sync.WaitGroup // of yield

	mu     sync.Mutex
	stats  map[shadowKey]*ShadowStat
	idle   []shadowConn
	closed bool
}

type shadowKey struct{ database, shape string }

// shadowConn is a connection that nobody uses.
type shadowConn struct {
	login shadowLogin
	conn  *pgconn.PgConn
	since time.Time
}

// digest is what a server has answered.
type digest struct {
	sum    uint64 // of the rows' hashes
	rows   uint64
	failed *wire.Error
	took   time.Duration
}

func (a *digest) like(b *digest) bool {
	return a.sum == b.sum && a.rows == b.rows && a.failed == nil && b.failed == nil
}

// refused reports whether the server has found that the statement writes.
func (a *digest) refused() bool {
	return a.failed != nil && a.failed.Code == wire.CodeReadOnlyTransaction
}

// rowSeed is for hashes of rows, which never leave the process.
var rowSeed = maphash.MakeSeed()

// shadowJob is one statement to be compared.
type shadowJob struct {
	key      shadowKey
	entry    string // of the database
	sql      string
	extended bool
	bind     boundParams
	settings *backend.Settings
	logins   []shadowLogin // by the index of the server at that time
	client   digest        // what the client was answered
	at       int64         // when, in Nanotime
}

type shadowLogin struct {
	at     pool.Key // under which its connections are counted
	login  backend.Login
	dialer *backend.Dialer
}

// reaches reports whether there is a login for a server: its address and its index
// now.
func (job *shadowJob) reaches(i int, addr string) bool {
	return i < len(job.logins) && job.logins[i].login.Server.Addr() == addr
}

// boundParams are what Parse and Bind give beside the text.
type boundParams struct {
	oids            []uint32
	values          [][]byte
	formats, result []int16
}

// tap listens to what is written to a client from a statement's first reply to its
// ReadyForQuery. It is used under the right to write to the client.
type tap struct {
	s     *Session
	job   *shadowJob
	began int64
	head  []byte // of a message, as far as it has come
	typ   byte
	rest  int // bytes of its body to come
	row   maphash.Hash
}

// feed is shown what is written.
func (t *tap) feed(p []byte) {
	for len(p) > 0 {
		if t.rest > 0 {
			n := min(t.rest, len(p))
			if t.typ == wire.DataRow {
				_, _ = t.row.Write(p[:n])
			}
			p = p[n:]
			if t.rest -= n; t.rest > 0 {
				return
			}
		} else {
			n := min(wire.HeaderLen-len(t.head), len(p))
			t.head = append(t.head, p[:n]...)
			p = p[n:]
			if len(t.head) < wire.HeaderLen {
				return
			}
			t.typ, t.rest = t.head[0], int(binary.BigEndian.Uint32(t.head[1:]))-4
			t.head = t.head[:0]
			t.row.SetSeed(rowSeed)
			if t.rest > 0 {
				continue
			}
		}
		if t.end() {
			return
		}
	}
}

// end is told that a message is complete. It reports whether that was the last.
func (t *tap) end() bool {
	a := &t.job.client
	switch t.typ {
	case wire.DataRow:
		a.sum += t.row.Sum64()
		a.rows++
	case wire.ErrorResponse, wire.CopyOutResponse, wire.CopyInResponse:
		a.failed = errNotCompared
	case wire.ReadyForQuery:
		t.s.tap.Store(nil)
		t.job.at = router.Nanotime()
		a.took = time.Duration(t.job.at - t.began)
		if a.failed == nil {
			t.s.srv.compare(t.job)
		}
		return true
	}
	return false
}

var errNotCompared = wire.Errorf(wire.CodeInternal, "not compared")

// sampled reports whether the statement that the lease was just lent for is to be
// compared.
func (s *Session) sampled() bool {
	on := s.shadowing
	s.shadowing = false
	return on && rand.Float64() < s.db.ShadowRatio
}

// listenFor prepares the comparison of a statement that is about to be sent. Nothing is
// owed to the client.
func (s *Session) listenFor(sql []byte, bind *boundParams) {
	// The lease was chosen for a whole batch, or by a hint: that proves nothing.
	plan := s.proved(s.srv.router.Plan(sql))
	if len(sql) > maxShadowText || plan.Use != router.PreparedNone || plan.Class != router.ClassRead {
		return
	}
	topo := s.srv.topo.Topology(s.db.Name)
	if topo == nil {
		return
	}
	job := &shadowJob{
		key: shadowKey{s.database, s.srv.router.Shape(sql)}, entry: s.db.Name, sql: string(sql), settings: s.settings.Load(),
		logins: make([]shadowLogin, len(topo.Servers)),
	}
	if bind != nil {
		job.bind, job.extended = *bind, true
	}
	for i := range topo.Servers {
		p, err := s.poolOf(i, topo.Servers[i].Addr)
		if err != nil {
			return
		}
		job.logins[i].at = p.Key
		job.logins[i].login, job.logins[i].dialer = p.Login()
	}
	s.tap.Store(&tap{s: s, job: job, began: router.Nanotime()})
}

// listenForBatch is listenFor for the batch that starts at q, if it is in hand and
// runs one statement.
func (s *Session) listenForBatch(q []byte) {
	var sql, oids, bind []byte
	parsed := make(map[string]wire.ParseMessage)
	for len(q) >= wire.HeaderLen {
		h, err := wire.ReadHeader(q, s.maxPacket())
		if err != nil || len(q) < h.Size() {
			return
		}
		body := q[wire.HeaderLen:h.Size()]
		switch h.Type {
		case wire.Parse:
			if m, err := wire.ReadParse(body); err == nil {
				parsed[string(m.Name)] = m
			}
		case wire.Bind:
			_, name, n, ok := wire.ReadBindNames(body)
			if !ok || bind != nil {
				return
			}
			bind = body[n:]
			if m, ok := parsed[string(name)]; ok {
				sql, oids = m.Query, m.OIDs
			} else if st := s.stmts[string(name)]; st != nil {
				sql, oids = st.Query, st.OIDs
			} else if len(name) == 0 {
				sql, oids = s.unnamed.query, s.unnamed.oids
			}
		case wire.Execute:
			if string(body) != "\x00\x00\x00\x00\x00" {
				return
			}
		case wire.Sync:
			if b, ok := readBound(oids, bind); ok && sql != nil && len(bind) <= maxShadowText {
				s.listenFor(sql, b)
			}
			return
		}
		q = q[h.Size():]
	}
}

// readBound reads the types of a Parse, behind its text, and the rest of a Bind,
// behind its names. What it returns is a copy.
func readBound(oids, bind []byte) (*boundParams, bool) {
	ok := true
	num := func(p *[]byte, size int) int {
		if len(*p) < size {
			ok = false
			return 0
		}
		n := 0
		for _, c := range (*p)[:size] {
			n = n<<8 | int(c)
		}
		*p = (*p)[size:]
		return n
	}
	formats := func() (out []int16) {
		for n := num(&bind, 2); n > 0 && ok; n-- {
			out = append(out, int16(num(&bind, 2)))
		}
		return out
	}
	b := &boundParams{}
	if len(oids) > 0 {
		for n := num(&oids, 2); n > 0 && ok; n-- {
			b.oids = append(b.oids, uint32(num(&oids, 4)))
		}
	}
	b.formats = formats()
	for n := num(&bind, 2); n > 0 && ok; n-- {
		size := num(&bind, 4)
		if size == 0xffffffff {
			b.values = append(b.values, nil)
			continue
		}
		if size > len(bind) {
			return nil, false
		}
		b.values = append(b.values, append([]byte{}, bind[:size]...))
		bind = bind[size:]
	}
	b.result = formats()
	return b, ok
}

// compare starts a comparison, unless too many are under way.
func (s *Server) compare(job *shadowJob) {
	if s.shadow.running.Add(1) > maxShadows || s.ctx.Err() != nil {
		s.shadow.running.Add(-1)
		s.shadow.count(job.key, func(st *ShadowStat) { st.Skipped++ })
		return
	}
	s.goes.Go(func() { // until ctx or shadowTimeout ends; waited for by Close
		defer s.shadow.running.Add(-1)
		ctx, stop := context.WithTimeout(s.ctx, shadowTimeout)
		defer stop()
		s.runShadow(ctx, job)
	})
}

func (s *Server) runShadow(ctx context.Context, job *shadowJob) {
	at := s.shadowReplica(ctx, job)
	if at < 0 {
		s.shadow.count(job.key, func(st *ShadowStat) { st.Skipped++ })
		return
	}
	replica, err := s.shadow.ask(ctx, job, at)
	if err != nil {
		s.shadow.count(job.key, func(st *ShadowStat) { st.Skipped++ })
		return
	}
	if replica.like(&job.client) {
		s.shadow.count(job.key, func(st *ShadowStat) {
			st.Runs++
			st.Same++
			st.Primary += job.client.took
			st.Replica += replica.took
		})
		return
	}
	primary := &digest{failed: errNotCompared}
	if replica.refused() {
		primary = &job.client // a question that it may not be asked twice
	} else if topo := s.topo.Topology(job.entry); topo != nil {
		for i := range topo.Servers {
			if x := &topo.Servers[i]; x.Role == router.RolePrimary && x.Up && job.reaches(i, x.Addr) {
				if a, err := s.shadow.ask(ctx, job, i); err == nil {
					primary = a
				}
			}
		}
	}
	s.shadow.count(job.key, func(st *ShadowStat) {
		st.Runs++
		switch {
		case !primary.like(&job.client):
			st.Changed++
		case replica.failed != nil:
			st.Failed++
			st.Last, st.Error = time.Now(), replica.failed.Message+" (SQLSTATE "+replica.failed.Code+")"
		default:
			st.Differs++
			st.Last = time.Now()
		}
	})
}

// shadowReplica waits for a replica that shows what the client was shown, and
// returns its index; -1 if there is none in time.
func (s *Server) shadowReplica(ctx context.Context, job *shadowJob) int {
	ctx, stop := context.WithTimeout(ctx, shadowWait)
	defer stop()
	for {
		topo := s.topo.Topology(job.entry)
		if topo == nil || len(topo.Servers) == 0 {
			return -1
		}
		from := rand.IntN(len(topo.Servers))
		for i := range topo.Servers {
			i = (i + from) % len(topo.Servers)
			if x := &topo.Servers[i]; x.Role == router.RoleReplica && x.Up && !x.Late && x.Covered >= job.at && job.reaches(i, x.Addr) {
				return i
			}
		}
		s.topo.Want(job.entry, job.at)
		if s.topo.Wait(ctx, job.entry, topo.Generation) != nil {
			return -1
		}
	}
}

// shadowReadOnly makes what a comparison runs READ ONLY, whatever the client's settings
// say: a statement that writes all the same was run by the client already.
const shadowReadOnly = "SET default_transaction_read_only = on"

// ask runs the statement on a server, where it cannot write. An error says that the
// server could not be asked; what it refuses is in the answer.
func (w *shadow) ask(ctx context.Context, job *shadowJob, i int) (*digest, error) {
	pc, err := w.take(ctx, job.logins[i])
	if err != nil {
		return nil, err
	}
	keep := false
	defer func() {
		if keep {
			w.put(job.logins[i], pc)
		} else {
			w.end(shadowConn{login: job.logins[i], conn: pc})
		}
	}()
	for _, x := range job.settings.List() {
		r := pc.ExecParams(ctx, "SELECT pg_catalog.set_config($1, $2, false)", [][]byte{[]byte(x.Name), []byte(x.Value)}, nil, nil, nil).Read()
		if r.Err != nil {
			return nil, r.Err
		}
	}
	if _, err := pc.Exec(ctx, shadowReadOnly).ReadAll(); err != nil {
		return nil, err
	}
	a, err := job.run(ctx, pc)
	if err != nil {
		return nil, err
	}
	_, err = pc.Exec(ctx, "DISCARD ALL").ReadAll()
	keep = err == nil
	return a, nil
}

// run runs the statement and hashes its rows as tap does.
func (job *shadowJob) run(ctx context.Context, pc *pgconn.PgConn) (*digest, error) {
	a := &digest{}
	began := router.Nanotime()
	var err error
	if job.extended {
		b := &job.bind
		r := pc.ExecParams(ctx, job.sql, b.values, b.oids, b.formats, b.result)
		a.take(r)
		_, err = r.Close()
	} else {
		m := pc.Exec(ctx, job.sql)
		for m.NextResult() {
			a.take(m.ResultReader())
		}
		err = m.Close()
	}
	a.took = time.Duration(router.Nanotime() - began)
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		a.failed = &wire.Error{Code: pe.Code, Message: pe.Message}
		return a, nil
	}
	return a, err
}

func (a *digest) take(r *pgconn.ResultReader) {
	var row maphash.Hash
	var n [4]byte
	for r.NextRow() {
		row.SetSeed(rowSeed)
		values := r.Values()
		binary.BigEndian.PutUint16(n[:], uint16(len(values)))
		_, _ = row.Write(n[:2])
		for _, v := range values {
			size := uint32(len(v))
			if v == nil {
				size = 0xffffffff
			}
			binary.BigEndian.PutUint32(n[:], size)
			_, _ = row.Write(n[:])
			_, _ = row.Write(v)
		}
		a.sum += row.Sum64()
		a.rows++
	}
}

// take returns a connection that is kept, or a new one.
func (w *shadow) take(ctx context.Context, l shadowLogin) (*pgconn.PgConn, error) {
	w.mu.Lock()
	i := slices.IndexFunc(w.idle, func(c shadowConn) bool { return sameLogin(c.login.login, l.login) && !c.conn.IsClosed() })
	if i >= 0 {
		pc := w.idle[i].conn
		w.idle = slices.Delete(w.idle, i, i+1)
		w.mu.Unlock()
		return pc, nil
	}
	w.mu.Unlock()
	l.login.AppName = "pgproxy shadow"
	if !w.guests.TryEnter(l.at) {
		return nil, pool.ErrNoRoom
	}
	pc, err := l.dialer.Open(ctx, l.login)
	if err != nil {
		w.guests.Leave(l.at)
	}
	return pc, err
}

func sameLogin(a, b backend.Login) bool {
	return a.Server.Addr() == b.Server.Addr() && a.Database == b.Database && a.User == b.User && subtle.ConstantTimeCompare([]byte(a.Password.Reveal()), []byte(b.Password.Reveal())) == 1
}

func (w *shadow) put(l shadowLogin, pc *pgconn.PgConn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.idle = append(w.idle, shadowConn{l, pc, time.Now()})
}

// end closes a connection.
func (w *shadow) end(c shadowConn) {
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	_ = c.conn.Close(ctx)
	w.guests.Leave(c.login.at)
}

// yield closes a connection that is not used, since others wait for its place.
func (w *shadow) yield(at pool.Key, _ bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.idle, func(c shadowConn) bool { return c.login.at == at })
	if i < 0 || w.closed {
		return false
	}
	c := w.idle[i]
	w.idle = slices.Delete(w.idle, i, i+1)
	w.ending.Go(func() { w.end(c) }) // until the server has closed it; waited for by close
	return true
}

// tidy closes the connections that nobody has used for a while, or all of them.
func (w *shadow) tidy(all bool) {
	w.mu.Lock()
	var old []shadowConn
	w.idle = slices.DeleteFunc(w.idle, func(c shadowConn) bool {
		gone := all || time.Since(c.since) > shadowIdle
		if gone {
			old = append(old, c)
		}
		return gone
	})
	w.mu.Unlock()
	for _, c := range old {
		w.end(c)
	}
}

// close ends all connections. No comparison is under way any more.
func (w *shadow) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.tidy(true)
	w.ending.Wait()
}

// count changes the figures of a shape. Beyond maxShadowShape all others are one.
func (w *shadow) count(k shadowKey, change func(*ShadowStat)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stats == nil {
		w.stats = make(map[shadowKey]*ShadowStat)
	}
	st := w.stats[k]
	if st == nil && len(w.stats) >= maxShadowShape {
		k = shadowKey{"(other)", "(other)"}
		st = w.stats[k]
	}
	if st == nil {
		st = &ShadowStat{Database: k.database, Shape: k.shape}
		w.stats[k] = st
	}
	change(st)
}

// Shadow returns what has come of shadow mode, what differs first and then the most
// frequent.
func (s *Server) Shadow() []ShadowStat {
	w := &s.shadow
	w.mu.Lock()
	out := make([]ShadowStat, 0, len(w.stats))
	for _, st := range w.stats {
		out = append(out, *st)
	}
	w.mu.Unlock()
	slices.SortFunc(out, func(a, b ShadowStat) int {
		return cmp.Or(cmp.Compare(b.Differs+b.Failed, a.Differs+a.Failed), cmp.Compare(b.Runs, a.Runs),
			cmp.Compare(a.Database, b.Database), cmp.Compare(a.Shape, b.Shape))
	})
	return out
}
