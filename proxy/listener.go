package proxy

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"pgproxy/auth"
	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/pool"
	"pgproxy/router"
	"pgproxy/wire"
)

// LISTEN in transaction pooling: for each database and server role there is one
// server connection that listens for all clients (line.go). What it hears is
// handed to those who listen to the channel (ears.go).

// The times of a listener.
const (
	listenTick  = time.Second           // how often it looks whether its server is still the primary
	listenIdle  = 5                     // ticks that it stays with nothing to listen to
	listenRetry = 50 * time.Millisecond // pause after a failure, doubled each time
	listenPause = 5 * time.Second       // longest pause
	fenceWait   = time.Second           // longest wait of a client for its own notifications
)

type listenKey struct{ database, user string }

// listener listens for the clients of a database that log in to servers as one
// role. Its goroutine, waited for by Server.Close, keeps a connection to the
// primary of the moment and ends when nobody has listened for a while.
type listener struct {
	// Set at construction.
	srv *Server
	key listenKey

	sending sync.Mutex // held while a request is queued and written, so that both orders are one

	// Guarded by mu, which comes after sending and before ears.mu and
	// backend.Conn.mu.
	mu       sync.Mutex
	identity auth.Identity // of the client that came last: its password logs in
	channels map[string]*channel
	line     *line      // the connection; nil: none that has all channels
	waiting  []*request // for a line
	ended    bool       // ask the Server for another
	fenced   int64      // all notifications that were committed before are here
	stats    ListenerStats
}

// channel is what at least one client listens to, or is about to.
type channel struct {
	ears    map[*ears]bool // true: told at once; false: when its transaction has committed
	wanting int            // requests under way
}

// request is something that the server is to do.
type request struct {
	sql  string
	sent int64         // Nanotime
	then func(ok bool) // called once with listener.mu held, in the order of the server's stream; may be nil
	done chan error    // gets the outcome; has room for it
	over bool          // that has been done
	once bool          // of no use on another connection than the one that it was made for
}

// ListenerStats is a copy of what a listener does.
type ListenerStats struct {
	Database, User string
	Server         string // "" while there is no connection
	PID            uint32 // of the server's process
	Since          time.Time
	Channels       int
	Clients        int
	Notifications  uint64 // heard
	Delivered      uint64 // handed to clients
	Reconnects     uint64
	LastError      string
}

// listener returns the listener of a key, starting it if there is none.
func (s *Server) listener(key listenKey, id auth.Identity) *listener {
	s.listening.Lock()
	defer s.listening.Unlock()
	l := s.ears[key]
	if l == nil {
		l = &listener{srv: s, key: key, channels: make(map[string]*channel)}
		l.stats.Database, l.stats.User = key.database, key.user
		if s.ears == nil {
			s.ears = make(map[listenKey]*listener)
		}
		s.ears[key] = l
		s.goes.Add(1)
		go l.run()
	}
	l.mu.Lock()
	l.identity = id
	l.mu.Unlock()
	return l
}

// Listeners returns a copy for every listener, in order of database and user.
func (s *Server) Listeners() []ListenerStats {
	s.listening.Lock()
	defer s.listening.Unlock()
	var out []ListenerStats
	for _, l := range s.ears {
		l.mu.Lock()
		st := l.stats
		clients := make(map[*ears]bool)
		for _, ch := range l.channels {
			for e := range ch.ears {
				clients[e] = true
			}
		}
		st.Channels, st.Clients = len(l.channels), len(clients)
		if l.line != nil {
			st.Server, st.PID, st.Since = l.line.conn.Addr, l.line.conn.PID, l.line.conn.Since
		}
		l.mu.Unlock()
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b ListenerStats) int {
		return cmp.Or(cmp.Compare(a.Database, b.Database), cmp.Compare(a.User, b.User))
	})
	return out
}

// run keeps the listener connected.
func (l *listener) run() {
	defer l.srv.goes.Done()
	pause := listenRetry
	first := true
	for !l.end(false) {
		n, err := l.connect(first)
		if err == nil {
			pause, first = listenRetry, false
			l.watch(n)
			n.end()
			continue
		}
		l.failed(err)
		if l.end(true) {
			return
		}
		select {
		case <-time.After(pause):
		case <-l.srv.ctx.Done():
		}
		pause = min(2*pause, listenPause)
	}
}

// end reports whether the listener has ended: with the server or, if it is idle,
// when nobody wants it.
func (l *listener) end(idle bool) bool {
	l.srv.listening.Lock()
	defer l.srv.listening.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended && l.srv.ctx.Err() == nil && (!idle || len(l.channels) > 0 || len(l.waiting) > 0) {
		return false
	}
	l.ended = true
	for _, r := range l.waiting {
		r.finish(errShutdown)
	}
	l.waiting = nil
	if l.srv.ears[l.key] == l {
		delete(l.srv.ears, l.key)
	}
	return true
}

// connect opens a line to the primary and has it listen to all channels.
func (l *listener) connect(first bool) (*line, error) {
	p, err := l.pool()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithTimeout(l.srv.ctx, listenPause)
	defer stop()
	n := &line{l: l, pool: p, lost: make(chan struct{})}
	n.conn, err = p.Dial(ctx, n)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	var names []string
	for name := range l.channels {
		names = append(names, name)
	}
	l.mu.Unlock()
	r := &request{sql: "SET client_encoding = 'UTF8';" + listenSQL(names), done: make(chan error, 1), once: true}
	l.sending.Lock()
	err = n.send(r)
	l.sending.Unlock()
	if err == nil {
		err = n.wait(ctx, r)
	}
	if err != nil {
		n.end()
		return nil, err
	}
	l.begin(n, names, !first)
	return n, nil
}

// pool returns the pool of the primary.
func (l *listener) pool() (*pool.Pool, error) {
	st := l.srv.current.Load()
	db, ok := st.Config.Database(l.key.database)
	if !ok {
		return nil, errNoDatabase(l.key.database)
	}
	l.mu.Lock()
	id := l.identity
	l.mu.Unlock()
	user, password, err := auth.ServerPassword(id, db, st.Users)
	if err != nil {
		return nil, err
	}
	if user != l.key.user {
		return nil, errNoDatabase(l.key.database)
	}
	addr, err := l.primary(db.Name)
	if err != nil {
		return nil, err
	}
	return l.srv.pools.Get(l.key.database, db, config.ServerAt(addr), user, password), nil
}

// errNoDatabase is what clients of a database hear that is not configured any more.
func errNoDatabase(name string) *wire.Error {
	return wire.Fatalf(wire.CodeUndefinedDatabase, "database %q does not exist", name).
		WithHint("It was taken out of the configuration.")
}

// primary returns the address of the server that a write would go to now.
func (l *listener) primary(entry string) (string, error) {
	topo := l.srv.topo.Topology(entry)
	if topo == nil {
		return "", errNoDatabase(l.key.database)
	}
	ch := topo.Choose(router.Policy{}, &router.Request{Plan: welcomePlan})
	if ch.Server < 0 {
		return "", wire.Errorf(wire.CodeCannotConnectNow, "no primary: %s", ch.Reason)
	}
	return topo.Servers[ch.Server].Addr, nil
}

// begin puts a line into service. again says that there was one before.
func (l *listener) begin(n *line, names []string, again bool) {
	l.sending.Lock()
	defer l.sending.Unlock()
	l.mu.Lock()
	l.line = n
	l.stats.LastError = ""
	waiting := l.waiting
	l.waiting = nil
	var gone []string
	for _, name := range names {
		if l.channels[name] == nil {
			gone = append(gone, name)
		}
	}
	if again {
		l.stats.Reconnects++
		told := make(map[*ears]bool)
		notice := (&wire.Error{
			Severity: wire.SeverityNotice, Code: "00000", Message: "notifications may have been lost",
			Detail: "The connection that listens for this session had to be made anew.",
		}).AppendNotice(nil)
		for _, ch := range l.channels {
			for e := range ch.ears {
				if !told[e] {
					told[e] = true
					e.hear("", notice, true)
				}
			}
		}
	}
	l.mu.Unlock()
	for _, name := range gone {
		waiting = append(waiting, &request{sql: unlistenSQL(name), done: make(chan error, 1), once: true})
	}
	for _, r := range waiting {
		l.mu.Lock()
		over := r.over // whoever waits for it may have given up
		l.mu.Unlock()
		if !over {
			_ = n.send(r) // an error ends the line, which asks for another
		}
	}
	if again {
		l.srv.log.Warn("listening again", "database", l.key.database, "user", l.key.user, "server", n.conn.Addr)
	}
}

// watch returns when the line is of no more use.
func (l *listener) watch(n *line) {
	t := time.NewTicker(listenTick)
	defer t.Stop()
	for idle := 0; ; {
		select {
		case <-n.lost:
			return
		case <-l.srv.ctx.Done():
			return
		case <-t.C:
		}
		if db, ok := l.srv.current.Load().Config.Database(l.key.database); !ok {
			return
		} else if addr, err := l.primary(db.Name); err == nil && addr != n.conn.Addr {
			return // it is not the primary any more
		}
		l.mu.Lock()
		idle++
		if len(l.channels) > 0 || len(l.waiting) > 0 {
			idle = 0
		}
		l.mu.Unlock()
		if idle >= listenIdle && l.end(true) {
			return
		}
	}
}

// failed deals with a connection that could not be had.
func (l *listener) failed(err error) {
	var told *wire.Error
	refused, busy := backend.Refused(err)
	switch {
	case errors.Is(err, pool.ErrNoRoom):
		told = wire.Errorf(wire.CodeTooManyConnections, "no server connection is left to listen on").Because(err).
			WithHint("max_host_connections, max_db_connections or max_user_connections is reached.")
	case refused && !busy && errors.As(err, &told) && told.Code != wire.CodeCannotConnectNow:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.LastError = err.Error()
	if told == nil {
		return
	}
	for _, r := range l.waiting {
		r.finish(told)
	}
	l.waiting = nil
	if told.Code == wire.CodeUndefinedDatabase && told.Fatal() {
		for _, ch := range l.channels {
			for e := range ch.ears {
				e.s.end(told)
			}
		}
	}
}

// ask has the server do something for a session, which waits for the end of it.
func (l *listener) ask(s *Session, r *request) error {
	r.done = make(chan error, 1)
	if !l.submit(r) {
		l.mu.Lock()
		r.finish(errListenerEnded)
		l.mu.Unlock()
		return errListenerEnded
	}
	patience := s.db.QueryWaitTimeout
	if patience <= 0 {
		patience = time.Hour
	}
	var out error
	answered := false
	err := s.waitFor(patience, func(ctx context.Context) error {
		select {
		case out = <-r.done:
			answered = true
		case <-ctx.Done():
		}
		return nil
	})
	if answered {
		return out
	}
	l.mu.Lock()
	r.finish(errListenerEnded)
	last := l.stats.LastError
	l.mu.Unlock()
	if err == nil {
		err = wire.Errorf(wire.CodeCannotConnect, "the connection that listens for this session could not be had in time").
			Because(errors.New(last))
	}
	return err
}

var errListenerEnded = errors.New("listener has ended")

// submit sends a request or puts it in line for a connection. It reports false if
// the listener has ended.
func (l *listener) submit(r *request) bool {
	l.sending.Lock()
	defer l.sending.Unlock()
	l.mu.Lock()
	n := l.line
	switch {
	case l.ended:
		l.mu.Unlock()
		return false
	case n == nil && r.once:
		r.finish(errListenerEnded)
	case n == nil:
		l.waiting = append(l.waiting, r)
	}
	l.mu.Unlock()
	if n != nil {
		_ = n.send(r)
	}
	return true
}

// finish notes the outcome of a request, the first time. listener.mu is held.
func (r *request) finish(err error) {
	if r.over {
		return
	}
	r.over = true
	if r.then != nil {
		r.then(err == nil)
	}
	r.done <- err
}

// join makes a client listen to channels; told says whether it is told of
// notifications at once. It returns when the server has registered them.
func (l *listener) join(e *ears, names []string, told bool) error {
	r := &request{sql: listenSQL(names)}
	r.then = func(ok bool) {
		for _, name := range names {
			ch := l.channels[name]
			ch.wanting--
			if ok {
				ch.ears[e] = ch.ears[e] || told
			}
			l.tidy(name, ch)
		}
	}
	l.mu.Lock()
	for _, name := range names {
		ch := l.channels[name]
		if ch == nil {
			ch = &channel{ears: make(map[*ears]bool)}
			l.channels[name] = ch
		}
		ch.wanting++
	}
	l.mu.Unlock()
	return l.ask(e.s, r)
}

// settle decides what a client listens to from here on: it is told of the channels
// that are true in keep, not any more of those that are false, nor of others if
// all is set. Channels whose LISTEN has come to nothing are forgotten.
func (l *listener) settle(e *ears, all bool, keep map[string]bool) {
	l.sending.Lock()
	defer l.sending.Unlock()
	l.mu.Lock()
	var gone []string
	for name, ch := range l.channels {
		told, ok := ch.ears[e]
		if !ok {
			continue
		}
		wanted, named := keep[name]
		switch {
		case named && wanted:
			ch.ears[e] = true
		case named || all || !told:
			delete(ch.ears, e)
			if l.tidy(name, ch) {
				gone = append(gone, name)
			}
		}
	}
	n := l.line
	l.mu.Unlock()
	if n != nil {
		for _, name := range gone {
			_ = n.send(&request{sql: unlistenSQL(name), done: make(chan error, 1), once: true})
		}
	}
}

// heardBy returns the channels that a client is told of, in order.
func (l *listener) heardBy(e *ears) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for name, ch := range l.channels {
		if ch.ears[e] {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// tidy forgets a channel that nobody wants. listener.mu is held.
func (l *listener) tidy(name string, ch *channel) (gone bool) {
	if len(ch.ears) > 0 || ch.wanting > 0 {
		return false
	}
	delete(l.channels, name)
	return true
}

// fence returns when all notifications have come that were committed before, or
// there is no connection that they could come over, or after fenceWait.
func (l *listener) fence() {
	over := make(chan struct{})
	r := &request{done: make(chan error, 1), once: true, then: func(bool) { close(over) }}
	if !l.submit(r) {
		return
	}
	t := time.NewTimer(fenceWait)
	defer t.Stop()
	select {
	case <-over:
	case <-t.C:
	}
}

// deliver hands a notification to those who listen.
func (l *listener) deliver(n *line, pid uint32, name, payload []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Notifications++
	ch := l.channels[string(name)]
	if ch == nil {
		return
	}
	msg := wire.AppendNotification(nil, pid, name, payload)
	for e, told := range ch.ears {
		m := msg
		if e.owns(n, pid, l.fenced) {
			m = wire.AppendNotification(nil, e.s.pid, name, payload)
		}
		if told {
			l.stats.Delivered++
		}
		e.hear(string(name), m, told)
	}
}

func listenSQL(names []string) string {
	slices.Sort(names)
	var sql []byte
	for _, name := range names {
		sql = append(append(append(sql, "LISTEN "...), quoteName(name)...), ';')
	}
	return string(sql)
}

func unlistenSQL(name string) string { return "UNLISTEN " + quoteName(name) }
