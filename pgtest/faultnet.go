package pgtest

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Direction is one of the two ways through a Relay.
type Direction int

// The two directions.
const (
	ToServer Direction = iota // from the one who dialled to the target
	ToClient                  // back
)

// Fault is what a Relay does to the bytes of one direction. The zero value
// passes them on as they come.
type Fault struct {
	Latency   time.Duration // each piece arrives so much later, in order
	Size      int           // pieces of at most so many bytes; 0 = no limit
	Pause     time.Duration // between two pieces; with Size this bounds the bandwidth
	Blackhole bool          // bytes are read and lost; nothing is closed, not even when a side closes
	Stall     bool          // nothing more is read once the read that waits has returned: back-pressure
}

// Relay is a TCP relay on 127.0.0.1 that does harm on command. Its methods may
// be called from any goroutine; a fault that is set applies to open connections
// too, from the next piece on.
type Relay struct {
	t      testing.TB
	addr   string // its own
	target string
	wg     sync.WaitGroup

	accepted atomic.Int64
	bytes    [2]atomic.Int64

	// guarded by mu
	mu      sync.Mutex
	ln      net.Listener // nil while it refuses
	closed  bool
	faults  [2]Fault
	cuts    [2]*cut
	changed chan struct{} // closed and replaced when faults or closed change
	links   map[*link]struct{}
}

// cut is an order to end a connection when a byte count is reached.
type cut struct {
	left  int
	reset bool
	done  chan struct{}
}

// link is one relayed connection.
type link struct {
	relay *Relay
	ends  [2]net.Conn // index: the Direction that is written to it
	gone  chan struct{}
	once  sync.Once
}

// chunk is a piece on its way.
type chunk struct {
	data []byte
	due  time.Time
}

// NewRelay starts a relay in front of target (host:port). It is closed when the
// test ends.
func NewRelay(t testing.TB, target string) *Relay {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("relay: %v", err)
	}
	r := &Relay{
		t: t, addr: ln.Addr().String(), target: target, ln: ln,
		changed: make(chan struct{}), links: make(map[*link]struct{}),
	}
	r.wg.Go(func() { r.accept(ln) }) // ends when the listener is closed
	t.Cleanup(r.Close)
	return r
}

// Addr is the relay's host:port.
func (r *Relay) Addr() string { return r.addr }

// Port is the relay's TCP port.
func (r *Relay) Port() int {
	a, err := net.ResolveTCPAddr("tcp4", r.addr)
	if err != nil {
		r.t.Fatalf("relay: %v", err)
	}
	return a.Port
}

// Accepted is the number of connections taken since the start.
func (r *Relay) Accepted() int { return int(r.accepted.Load()) }

// Active is the number of connections open now.
func (r *Relay) Active() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.links)
}

// Bytes is the number of bytes that were passed on in a direction.
func (r *Relay) Bytes(d Direction) int64 { return r.bytes[d].Load() }

// Set puts a fault on one direction in the place of the one before.
func (r *Relay) Set(d Direction, f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults[d] = f
	r.changeLocked()
}

// SetBoth puts a fault on both directions.
func (r *Relay) SetBoth(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = [2]Fault{f, f}
	r.changeLocked()
}

// Heal takes faults off both directions. What a blackhole has swallowed is lost.
func (r *Relay) Heal() { r.SetBoth(Fault{}) }

func (r *Relay) changeLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// ResetAll ends every open connection by a TCP reset to both sides.
func (r *Relay) ResetAll() {
	for _, l := range r.open() {
		l.end(byReset)
	}
}

// CloseAll ends every open connection by FIN to both sides.
func (r *Relay) CloseAll() {
	for _, l := range r.open() {
		l.end(byFIN)
	}
}

// HalfClose sends FIN in one direction of every open connection and goes on with
// the other.
func (r *Relay) HalfClose(d Direction) {
	for _, l := range r.open() {
		_ = closeWrite(l.ends[d]) // the connection may just have ended
	}
}

func (r *Relay) open() []*link {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*link, 0, len(r.links))
	for l := range r.links {
		out = append(out, l)
	}
	return out
}

// CutAfter ends the connection that carries the n-th byte of a direction from
// now on, behind exactly that byte: by a reset to both sides, or else by FIN. The
// channel is closed when it has happened. A reset may destroy bytes that the
// receiver has not read yet.
func (r *Relay) CutAfter(d Direction, n int, reset bool) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &cut{left: n, reset: reset, done: make(chan struct{})}
	r.cuts[d] = c
	return c.done
}

// Refuse closes the listening socket: new connections are refused. Open ones
// stay.
func (r *Relay) Refuse() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ln != nil {
		_ = r.ln.Close()
		r.ln = nil
	}
}

// Listen undoes Refuse.
func (r *Relay) Listen() {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ln != nil || r.closed {
		return
	}
	ln, err := net.Listen("tcp4", r.addr)
	if err != nil {
		r.t.Fatalf("relay: %v", err)
	}
	r.ln = ln
	r.wg.Go(func() { r.accept(ln) }) // ends when the listener is closed
}

// Close ends everything and waits for it.
func (r *Relay) Close() {
	r.Refuse()
	r.mu.Lock()
	if !r.closed {
		r.closed = true
		r.changeLocked()
	}
	r.mu.Unlock()
	for _, l := range r.open() {
		l.end(byClose)
	}
	r.wg.Wait()
}

func (r *Relay) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		r.accepted.Add(1)
		r.wg.Go(func() { r.connect(conn) }) // ends with the dial
	}
}

// connect dials the target for a connection that came in. A target that does not
// answer closes it.
func (r *Relay) connect(conn net.Conn) {
	server, err := net.DialTimeout("tcp", r.target, 10*time.Second)
	if err != nil {
		_ = reset(conn)
		return
	}
	l := &link{relay: r, ends: [2]net.Conn{ToServer: server, ToClient: conn}, gone: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		_ = conn.Close()
		_ = server.Close()
		return
	}
	r.links[l] = struct{}{}
	var both sync.WaitGroup
	for _, d := range []Direction{ToServer, ToClient} {
		both.Go(func() { l.carry(d) }) // ends when the reading side ends, or with the link
	}
	r.wg.Go(func() { // ends with both
		both.Wait()
		l.end(byClose)
		for _, conn := range l.ends {
			_ = conn.Close()
		}
	})
}

// The ways to end a link.
type ending int

const (
	byClose ending = iota // at once
	byReset               // at once, and the sides shall see a reset
	byFIN                 // the sides shall see FIN behind what was delivered
)

// linger is how long a link that ended by FIN goes on reading what is lost
// anyway: to close a socket with unread bytes would send a reset.
const linger = 2 * time.Second

// end ends both directions.
func (l *link) end(how ending) {
	l.once.Do(func() {
		close(l.gone)
		for _, conn := range l.ends {
			switch how {
			case byReset:
				_ = reset(conn)
			case byFIN:
				_ = closeWrite(conn)
				_ = conn.SetReadDeadline(time.Now().Add(linger))
			case byClose:
				_ = conn.Close()
			}
		}
		l.relay.mu.Lock()
		delete(l.relay.links, l)
		l.relay.mu.Unlock()
	})
}

// carry moves bytes one way until the reading side ends: one goroutine reads and
// stamps, this one waits and writes.
func (l *link) carry(d Direction) {
	queue := make(chan chunk, 64)
	var reader sync.WaitGroup
	defer reader.Wait()
	reader.Go(func() { // ends with the connection that it reads
		defer close(queue)
		l.read(d, queue)
	})
	for c := range queue {
		if !l.until(c.due) || !l.deliver(d, c.data) {
			l.end(byFIN)
			for range queue { // until the reader ends
				continue
			}
			return
		}
	}
	if !l.swallows(d) {
		_ = closeWrite(l.ends[d])
		return
	}
	// A blackhole does not pass the end on either, until it heals.
	for l.swallows(d) && l.wait() {
		continue
	}
	l.end(byFIN)
}

func (l *link) read(d Direction, queue chan<- chunk) {
	from := l.ends[1-d]
	buf := make([]byte, 32<<10)
	for {
		for l.fault(d).Stall {
			if !l.wait() {
				return
			}
		}
		n, err := from.Read(buf)
		if n > 0 {
			due := time.Now().Add(l.fault(d).Latency)
			select {
			case queue <- chunk{append([]byte(nil), buf[:n]...), due}:
			case <-l.gone: // lost
			}
		}
		if err != nil {
			// An end by reset is passed on as one, unless bytes are lost here.
			if !errors.Is(err, io.EOF) && !l.swallows(d) {
				l.end(byReset)
			}
			return
		}
	}
}

// deliver writes data as the fault of the moment says. It is false when the
// connection has ended.
func (l *link) deliver(d Direction, data []byte) bool {
	for len(data) > 0 {
		f := l.fault(d)
		if f.Blackhole {
			return true
		}
		piece := data
		if f.Size > 0 && len(piece) > f.Size {
			piece = piece[:f.Size]
		}
		piece, order := l.relay.takeCut(d, piece)
		l.relay.bytes[d].Add(int64(len(piece))) // first, so that who has received them finds them counted
		if _, err := l.ends[d].Write(piece); err != nil {
			return false
		}
		if order != nil {
			if order.reset {
				l.end(byReset)
			} else {
				l.end(byFIN)
			}
			close(order.done)
			return false
		}
		data = data[len(piece):]
		if len(data) > 0 && f.Pause > 0 && !l.until(time.Now().Add(f.Pause)) {
			return false
		}
	}
	return true
}

// takeCut counts a piece against the order to cut, and shortens it to the last
// byte that may pass if the order is due.
func (r *Relay) takeCut(d Direction, piece []byte) ([]byte, *cut) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.cuts[d]
	if c == nil {
		return piece, nil
	}
	if len(piece) < c.left {
		c.left -= len(piece)
		return piece, nil
	}
	r.cuts[d] = nil
	return piece[:c.left], c
}

func (l *link) fault(d Direction) Fault {
	l.relay.mu.Lock()
	defer l.relay.mu.Unlock()
	return l.relay.faults[d]
}

func (l *link) swallows(d Direction) bool { return l.fault(d).Blackhole }

// wait waits for a change of faults; false when the link or relay has ended.
func (l *link) wait() bool {
	l.relay.mu.Lock()
	changed, closed := l.relay.changed, l.relay.closed
	l.relay.mu.Unlock()
	if closed {
		return false
	}
	select {
	case <-changed:
		return true
	case <-l.gone:
		return false
	}
}

// until waits for a moment; false when the link has ended before it.
func (l *link) until(due time.Time) bool {
	d := time.Until(due)
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.gone:
		return false
	}
}
