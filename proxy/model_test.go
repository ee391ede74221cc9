package proxy_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/backend"
	"pgproxy/pgtest"
	"pgproxy/wire"
)

// modelRuns is the environment variable that says how many scripts TestSessionModel
// plays.
const modelRuns = "PGPROXY_MODEL_RUNS"

// TestSessionModel: clients play scripts that are made up at random, with all kinds of
// messages, errors, pauses in the middle of a message, cancel requests and sudden ends,
// over fewer servers than there are of them. Each is answered like the model of a
// server that it has for itself. A server connection that is released is at rest, by
// what the proxy knows of it and by what its server does.
func TestSessionModel(t *testing.T) {
	runs := 2000
	if raceEnabled {
		runs = 800
	}
	if text := os.Getenv(modelRuns); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		runs = n
	}
	seed := rand.Uint64()
	for _, size := range []int{1, 2} {
		t.Run(fmt.Sprintf("pool of %d", size), func(t *testing.T) {
			w := newModelWorld(t, size)
			t.Logf("seed %d", seed)
			w.left.Store(int64(runs / 2))
			var clients []*modelClient
			for i := range 4 {
				clients = append(clients, &modelClient{w: w, rnd: rand.New(rand.NewPCG(seed, uint64(10*size+i)))})
			}
			var wg sync.WaitGroup
			for _, c := range clients {
				c.login()
				wg.Go(c.run)
			}
			wg.Wait()
			for _, c := range clients {
				if c.wrong != "" {
					t.Errorf("client %d: %s\nits last script, as short as it fails alone:\n%s%s", c.n, c.wrong, w.shrink(c.last), c.story)
				}
			}
			if w.released.Load() < int64(runs/8) {
				t.Errorf("%d releases: the test does not test", w.released.Load())
			}
			t.Logf("%d releases, %d clients", w.released.Load(), w.clients.Load())
		})
	}
}

// modelWorld is a proxy in front of a model of a server.
type modelWorld struct {
	t        *testing.T
	h        *harness
	left     atomic.Int64 // scripts still to be played
	clients  atomic.Int64 // so far
	released atomic.Int64
	ended    chan struct{}

	mu         sync.Mutex
	sessions   map[uint32]*servedSession // by the process of the server
	ends       []*servedSession          // the last two that have ended
	running    map[uint32]*slowly        // by the process of the server
	cancelling map[string]bool           // by client: a cancel request may hit it
}

// servedSession is a session of the server's.
type servedSession struct {
	mu sync.Mutex
	*modelSession
	story []string // the last messages, with what they were answered
}

func (s *servedSession) tell(m pgtest.Msg, answer []byte) {
	const most = 60
	if len(s.story) == most {
		s.story = slices.Delete(s.story, 0, most/2)
	}
	s.story = append(s.story, fmt.Sprintf("%c %q: %s", m.Type, m.Body, pgtest.Trace(messagesIn(answer))))
}

// tell returns what the servers have heard and said last.
func (w *modelWorld) tell() string {
	var b strings.Builder
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range append(slices.Collect(maps.Values(w.sessions)), w.ends...) {
		s.mu.Lock()
		fmt.Fprintf(&b, "a server's session\n  %s\n", strings.Join(s.story, "\n  "))
		s.mu.Unlock()
	}
	lines := strings.Split(w.h.Log.Text(), "\n")
	return b.String() + strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// slowly is a statement that waits for a cancel request.
type slowly struct {
	client   string
	canceled chan struct{}
}

func newModelWorld(t *testing.T, size int) *modelWorld {
	w := &modelWorld{t: t, ended: make(chan struct{}), sessions: make(map[uint32]*servedSession), running: make(map[uint32]*slowly), cancelling: make(map[string]bool)}
	s := pgtest.NewFakeServer(t, w.serve)
	t.Cleanup(func() { close(w.ended) })
	w.h = newHarness(t, harnessOptions{
		Servers: []string{s.Addr()},
		Proxy:   trust + fmt.Sprintf("default_pool_size = %d\nmax_prepared_statements = 4\nsession_audit_ratio = 0\nquery_wait_notify = 0\nlog_level = \"error\"", size),
		Watch:   func(o backend.Owner) backend.Owner { return &releases{o, w} },
	})
	return w
}

// releases looks at each connection that is released.
type releases struct {
	backend.Owner
	w *modelWorld
}

func (r *releases) Release(c *backend.Conn) {
	r.w.released.Add(1)
	if err := c.CheckReleased(); err != nil {
		r.w.t.Error(err)
	}
	r.w.mu.Lock()
	s := r.w.sessions[c.PID]
	r.w.mu.Unlock()
	if s != nil { // it has not ended meanwhile
		s.mu.Lock()
		if !s.resting() {
			r.w.t.Errorf("a connection was released whose server has status %q, skips %v, copies %v", s.status, s.skipping, s.copying != nil)
		}
		s.mu.Unlock()
	}
	r.Owner.Release(c)
}

// serve is one server connection, or a cancel request.
func (w *modelWorld) serve(c *pgtest.FakeConn) error {
	st, err := c.ReadStartup()
	if err != nil {
		return err
	}
	if st.Kind == wire.StartCancel {
		w.cancel(st.PID)
		return nil
	}
	pid, _ := c.Key()
	s := &servedSession{modelSession: newModelSession()}
	w.mu.Lock()
	w.sessions[pid] = s
	w.mu.Unlock()
	s.slow = func(sql string) { w.wait(pid, sql) }
	rnd := rand.New(rand.NewPCG(uint64(pid), 1))
	if err := c.Send(c.Welcome()); err != nil {
		return err
	}
	answer := func(m pgtest.Msg) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		before := len(s.out)
		flush := s.read(m)
		s.tell(m, s.out[before:])
		if !flush && rnd.IntN(8) > 0 { // a server may send whenever it likes
			return nil
		}
		err := c.Send(s.out)
		s.out = s.out[:0]
		return err
	}
	for {
		m, err := c.Read()
		if err != nil || m.Type == wire.Terminate {
			w.mu.Lock()
			w.ends = append(w.ends[max(0, len(w.ends)-1):], s)
			delete(w.sessions, pid)
			w.mu.Unlock()
			return err
		}
		if err := answer(m); err != nil {
			return err
		}
	}
}

// wait is a statement that waits.
func (w *modelWorld) wait(pid uint32, sql string) {
	x := &slowly{client: ownerOf(sql), canceled: make(chan struct{})}
	w.mu.Lock()
	w.running[pid] = x
	w.mu.Unlock()
	select {
	case <-x.canceled:
	case <-w.ended:
	}
}

// cancel is a cancel request that has come to the server.
func (w *modelWorld) cancel(pid uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.running[pid]
	if x == nil {
		return
	}
	delete(w.running, pid)
	if !w.cancelling[x.client] {
		w.t.Errorf("a statement of client %s was cancelled, which has not asked for it", x.client)
	}
	close(x.canceled)
}

func (w *modelWorld) runs(client string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.running {
		if x.client == client {
			return true
		}
	}
	return false
}

func (w *modelWorld) mayCancel(client string, may bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cancelling[client] = may
}

// modelClient is one client, or several one after the other.
type modelClient struct {
	w     *modelWorld
	rnd   *rand.Rand
	n     int // which client it is now
	c     *pgtest.RawClient
	model *modelSession // answers as its server should
	heard int           // messages of that
	tags  int
	last  []pgtest.Msg // the script at hand
	story string       // of the servers, when it went wrong
	wrong string
}

func (c *modelClient) name() string { return strconv.Itoa(c.n) }

func (c *modelClient) login() {
	c.n = int(c.w.clients.Add(1))
	c.c = c.w.h.Client(c.w.t)
	c.c.Skip = "S"
	c.model, c.heard = newModelSession(), 0
}

func (c *modelClient) run() {
	defer func() {
		if c.wrong != "" {
			c.story = c.w.tell()
		}
		c.c.Reset() // the others go on
	}()
	for c.w.left.Add(-1) >= 0 && c.wrong == "" {
		switch c.rnd.IntN(20) {
		case 0:
			c.leave()
			c.login()
		case 1:
			c.wrong = c.slow()
		case 2:
			c.c.Cancel(c.w.h.Addr) // nothing is under way for it
		default:
			c.last = c.script()
			c.wrong = c.play(c.last, true)
		}
	}
}

// leave ends the session in the middle of a script.
func (c *modelClient) leave() {
	var all []byte
	for _, m := range c.script() {
		all = append(all, m.Bytes()...)
	}
	c.w.mayCancel(c.name(), true) // by the proxy, for a client that is gone
	n := c.rnd.IntN(len(all) + 1)
	_ = c.c.TrySend(all[:n])
	switch c.rnd.IntN(4) {
	case 0:
		if n < len(all) {
			c.c.Close() // a Terminate would be taken for the rest of something
		} else {
			c.c.Terminate()
		}
	case 1:
		c.c.CloseWrite()
		c.c.Close()
	case 2:
		c.c.Reset()
	default:
		c.c.Close()
	}
}

// slow sends a statement that does not end, and cancels it.
func (c *modelClient) slow() string {
	sql := "SELECT slow('" + c.tag() + "')"
	msgs := []pgtest.Msg{{Type: wire.Query, Body: append([]byte(sql), 0)}}
	if c.rnd.IntN(2) == 0 {
		msgs = messagesIn(pgtest.Extended(sql))
	}
	failed := c.model.status == wire.TxFailed
	c.last = msgs
	var all []byte
	for _, m := range msgs {
		c.model.read(m)
		all = append(all, m.Bytes()...)
	}
	c.w.mayCancel(c.name(), true)
	defer c.w.mayCancel(c.name(), false)
	if err := c.c.TrySend(all); err != nil {
		return err.Error()
	}
	for deadline := time.After(20 * time.Second); !failed && !c.w.runs(c.name()); {
		select {
		case <-deadline:
			return "a statement has not come to its server"
		case <-time.After(time.Millisecond):
		}
	}
	if !failed {
		c.c.Cancel(c.w.h.Addr)
	}
	return c.listen()
}

// play sends a script in random pieces, and now and then waits for what the model has
// answered so far.
func (c *modelClient) play(script []pgtest.Msg, pauses bool) string {
	var all []byte
	send := func() string {
		for len(all) > 0 {
			n := len(all)
			if c.rnd.IntN(4) == 0 {
				n = 1 + c.rnd.IntN(len(all))
			}
			if err := c.c.TrySend(all[:n]); err != nil {
				return err.Error()
			}
			all = all[n:]
			if len(all) > 0 && c.rnd.IntN(2) == 0 {
				<-time.After(time.Duration(c.rnd.IntN(1000)) * time.Microsecond) // the proxy sees what there is
			}
		}
		return ""
	}
	for _, m := range script {
		all = append(all, m.Bytes()...)
		if c.model.read(m) && pauses && c.rnd.IntN(3) == 0 {
			if wrong := send(); wrong != "" {
				return wrong
			}
			if wrong := c.listen(); wrong != "" {
				return wrong
			}
		}
	}
	if wrong := send(); wrong != "" {
		return wrong
	}
	return c.listen()
}

// listen reads what the model has said and compares it.
func (c *modelClient) listen() string {
	want := messagesIn(c.model.out)
	c.model.out = c.model.out[:0]
	for i, m := range want {
		got, err := c.c.TryRead()
		if err != nil {
			return fmt.Sprintf("want %s, got the first %d of it, then %v", pgtest.Trace(want), i, err)
		}
		if got.String() != m.String() {
			return fmt.Sprintf("want %s\n got %s %s", pgtest.Trace(want), pgtest.Trace(want[:i]), got)
		}
	}
	c.c.Trace() // is not kept
	return ""
}

// messagesIn takes messages of the model's, or of a test's, apart.
func messagesIn(p []byte) (out []pgtest.Msg) {
	for len(p) >= wire.HeaderLen {
		h, err := wire.ReadHeader(p, len(p))
		if err != nil {
			panic(err)
		}
		out = append(out, pgtest.Msg{Type: h.Type, Body: slices.Clone(p[wire.HeaderLen:h.Size()])})
		p = p[h.Size():]
	}
	return out
}

func (c *modelClient) tag() string {
	c.tags++
	return modelTag(c.n, c.tags)
}

// text makes up a statement.
func (c *modelClient) text() string {
	switch tag := c.tag(); c.rnd.IntN(14) {
	case 0, 1, 2:
		return "SELECT '" + tag + "'"
	case 3:
		return "SELECT '" + tag + "' FROM three"
	case 4:
		return "SELECT '" + tag + "'::int"
	case 5:
		return "SELEC '" + tag + "'"
	case 6, 7:
		return "INSERT INTO t VALUES ('" + tag + "')"
	case 8:
		return ""
	case 9:
		return "SELECT 'everybody' FROM three"
	case 10:
		return "COMMIT"
	case 11:
		return "ROLLBACK"
	default:
		return "BEGIN"
	}
}

// script makes up what a client sends. At its end the model has answered all of it.
func (c *modelClient) script() []pgtest.Msg {
	var out []byte
	pick := func(list ...string) string { return list[c.rnd.IntN(len(list))] }
	add := func(msgs ...[]byte) { out = append(out, pgtest.Join(msgs...)...) }
	parsed := false // an unnamed statement in this batch: see docs/notes.md on others
	statement := func() string {
		name := pick("", "s1", "s2", "s3")
		if name == "" && !parsed {
			add(pgtest.Parse("", c.text()))
			parsed = true
		}
		return name
	}
	copied := func() {
		for range c.rnd.IntN(3) {
			add(pgtest.CopyData(pick("good\n", "good\n", "good\n", "bad\n")))
			if c.rnd.IntN(4) == 0 {
				add(pgtest.Flush())
			}
		}
		if c.rnd.IntN(4) == 0 {
			add(pgtest.CopyFail("no"))
		} else {
			add(pgtest.CopyDone())
		}
	}
	for range 1 + c.rnd.IntN(12) {
		switch c.rnd.IntN(20) {
		case 0, 1, 2:
			name := pick("", "s1", "s2", "s3")
			parsed = parsed || name == ""
			add(pgtest.Parse(name, c.text()))
		case 3, 4, 5:
			name := statement()
			add(pgtest.Bind(pick("", "", "p1"), name))
		case 6, 7, 8:
			add(pgtest.Execute(pick("", "", "p1"), c.rnd.IntN(3)))
		case 9:
			name := statement()
			add(pgtest.Describe('S', name))
		case 10:
			add(pgtest.Describe('P', pick("", "", "p1")))
		case 11:
			add(pgtest.Close('S', pick("", "s1", "s2", "s3")))
		case 12:
			add(pgtest.Close('P', pick("", "p1")))
		case 13:
			add(pgtest.Flush())
		case 14, 15:
			add(pgtest.Query(c.text()))
			parsed = false
		case 16:
			add(pgtest.FunctionCall(1598))
		case 17:
			copied() // of no COPY, most of the time
		case 18:
			add(pgtest.Query("COPY t FROM STDIN /* " + c.tag() + " */"))
			copied()
			parsed = false
		default:
			add(pgtest.Sync())
			parsed = false
		}
	}
	add(pgtest.Sync())
	return messagesIn(out)
}

// shrink leaves out messages of a script as long as it fails alone.
func (w *modelWorld) shrink(script []pgtest.Msg) string {
	fails := func(script []pgtest.Msg) bool {
		c := &modelClient{w: w, rnd: rand.New(rand.NewPCG(1, 1))}
		c.login()
		c.c.Timeout = time.Second
		defer c.c.Reset()
		return c.play(script, false) != ""
	}
	alone := fails(script)
	for i := 0; alone && i < len(script)-1; {
		if less := slices.Delete(slices.Clone(script), i, i+1); fails(less) {
			script = less
		} else {
			i++
		}
	}
	var b strings.Builder
	if !alone {
		b.WriteString("(it does not fail alone)\n")
	}
	for _, m := range script {
		fmt.Fprintf(&b, "%c %q\n", m.Type, m.Body)
	}
	return b.String()
}
