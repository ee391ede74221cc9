package netio

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// ErrTooLong is returned by Loop when its handler leaves as many bytes as the
// connection's limit allows, and so wants more.
var ErrTooLong = errors.New("netio: message longer than the buffer limit")

// Handler consumes what has been read: it returns how many bytes of p it is
// done with. What it leaves is shown again, with more behind it, at the next
// call. p is valid only during the call.
type Handler func(p []byte) (used int, err error)

// Conn is a socket. See the package's comment for who may call what.
type Conn struct {
	// Set at construction.
	nc    net.Conn
	raw   syscall.RawConn // nil: nc has no descriptor of its own
	limit int             // most bytes that Loop holds for its handler
	onIn  func(fd uintptr) bool
	onOut func(fd uintptr) bool

	// Owned by the goroutine in Loop.
	handle  Handler
	readErr error
	buf     *[]byte // borrowed while bytes are in hand
	have    int     // bytes of *buf in hand
	carry   []byte  // a short unfinished message, kept while parked
	again   bool    // the handler wants another look before Loop parks

	// Owned by the goroutine in Write.
	out      []byte
	writeErr error
	once     bool // do not wait

	// Guarded by nudging.
	nudging sync.Mutex
	nudged  bool

	// Atomic, for observers.
	busy   atomic.Uint32 // 2 read since the last Probe, 1 quiet for one Probe, 0 probed
	woken  atomic.Bool
	closed atomic.Bool
}

// New wraps nc. limit bounds the bytes that Loop keeps for its handler.
func New(nc net.Conn, limit int) *Conn {
	c := &Conn{nc: nc, limit: max(limit, smallBuffer)}
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw = raw
			c.onIn = c.readable
			c.onOut = c.writable
		}
	}
	return c
}

// NetConn returns the wrapped connection.
func (c *Conn) NetConn() net.Conn { return c.nc }

// Preload puts bytes that were read ahead in front of what Loop will read.
func (c *Conn) Preload(p []byte) { c.carry = append(c.carry, p...) }

// Loop reads until h fails, the peer ends (io.EOF), or Wake or Close is called.
// A message cut by the end of the stream gives io.ErrUnexpectedEOF.
func (c *Conn) Loop(h Handler) error {
	c.handle, c.readErr = h, nil
	defer c.giveBack()
	if len(c.carry) > 0 {
		c.borrow(false)
		if !c.consume() {
			return c.result()
		}
		c.park()
	}
	if c.raw == nil {
		return c.loopPlain()
	}
	for {
		err := c.raw.Read(c.onIn)
		if err == nil || c.readErr != nil {
			return c.result()
		}
		if !c.takeNudge(err) {
			c.readErr = err
			return c.result()
		}
		c.borrow(false)
		if !c.consume() {
			return c.result()
		}
		c.park()
	}
}

// takeNudge reports whether the read was only interrupted by Nudge, and makes the
// next one wait again.
func (c *Conn) takeNudge(err error) bool {
	c.nudging.Lock()
	defer c.nudging.Unlock()
	if !errors.Is(err, os.ErrDeadlineExceeded) || !c.nudged {
		return false
	}
	c.nudged = false
	_ = c.nc.SetReadDeadline(time.Time{})
	return !c.stopped() // Wake says so before it sets the deadline that this may have cleared
}

// LookAgain is for the handler: it makes Loop read once more before it parks, so
// that an end of the stream that came together with the last bytes is seen at
// once. It costs a system call.
func (c *Conn) LookAgain() { c.again = true }

// stopped reports whether Loop has been told to end, and with which error. While
// a peer sends without a pause Loop does not park, so it must look itself.
func (c *Conn) stopped() bool {
	switch {
	case c.closed.Load():
		c.readErr = net.ErrClosed
	case c.woken.Load():
		c.readErr = os.ErrDeadlineExceeded
	default:
		return false
	}
	return true
}

func (c *Conn) result() error {
	if errors.Is(c.readErr, io.EOF) && c.have > 0 {
		return io.ErrUnexpectedEOF
	}
	return c.readErr
}

// readable is called with the descriptor when it may have bytes. It returns
// true to end Loop, false to park.
func (c *Conn) readable(fd uintptr) bool {
	if c.stopped() {
		return true
	}
	c.borrow(false)
	for {
		room := (*c.buf)[c.have:]
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&room[0])), uintptr(len(room)),
			syscall.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			c.park()
			return false
		default:
			c.readErr = os.NewSyscallError("recv", errno)
			return true
		}
		if n == 0 {
			c.readErr = io.EOF
			return true
		}
		c.busy.Store(2)
		c.have += int(n)
		full := int(n) == len(room)
		if !c.consume() {
			return true
		}
		if !full && !c.again {
			c.park()
			return false
		}
		c.again = false
		if c.stopped() {
			return true
		}
		if c.have == 0 && len(*c.buf) < largeBuffer {
			putBuffer(c.buf)
			c.buf = getBuffer(true)
		}
	}
}

// consume shows the handler what is in hand and moves the rest to the front,
// in a larger buffer where there is no room left. It returns false on error.
func (c *Conn) consume() bool {
	used, err := c.handle((*c.buf)[:c.have])
	if err != nil {
		c.readErr = err
		return false
	}
	rest := (*c.buf)[used:c.have]
	if len(rest) >= c.limit {
		c.readErr = ErrTooLong
		return false
	}
	if len(rest) < len(*c.buf) {
		if used > 0 {
			copy(*c.buf, rest)
		}
		c.have = len(rest)
		return true
	}
	var larger *[]byte
	if len(rest) < largeBuffer {
		larger = getBuffer(true)
	} else {
		b := make([]byte, min(2*len(rest), c.limit))
		larger = &b
	}
	copy(*larger, rest)
	putBuffer(c.buf)
	c.buf, c.have = larger, len(rest)
	return true
}

// borrow makes sure that there is a buffer, with the carried bytes in front.
func (c *Conn) borrow(large bool) {
	if c.buf == nil {
		c.buf = getBuffer(large || len(c.carry) >= smallBuffer)
		for len(c.carry) >= len(*c.buf) {
			b := make([]byte, 2*len(c.carry))
			c.buf = &b
		}
		c.have = copy(*c.buf, c.carry)
		c.carry = nil
	}
}

// park gives the buffer back, unless a long unfinished message is in it.
func (c *Conn) park() {
	if c.have > carryCopy {
		return
	}
	if c.have > 0 {
		c.carry = append([]byte(nil), (*c.buf)[:c.have]...)
	}
	c.giveBack()
}

func (c *Conn) giveBack() {
	putBuffer(c.buf)
	c.buf = nil
	if c.carry == nil && c.readErr == nil {
		c.have = 0
	}
}

// loopPlain is Loop over the ordinary Read. It keeps a buffer while it waits.
func (c *Conn) loopPlain() error {
	for {
		if c.stopped() {
			return c.result()
		}
		c.borrow(false)
		n, err := c.nc.Read((*c.buf)[c.have:])
		if n > 0 {
			c.busy.Store(2)
			c.have += n
			if !c.consume() {
				return c.result()
			}
		}
		if err == nil {
			continue
		}
		if !c.takeNudge(err) {
			if c.readErr == nil {
				c.readErr = err
			}
			return c.result()
		}
		if !c.consume() {
			return c.result()
		}
	}
}

// Write sends all of p and blocks while the peer does not read. p is not kept.
func (c *Conn) Write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if c.raw == nil {
		_, err := c.nc.Write(p)
		return err
	}
	c.out, c.writeErr = p, nil
	err := c.raw.Write(c.onOut)
	c.out = nil
	if c.writeErr != nil {
		return c.writeErr
	}
	return err
}

// TryWrite sends as much of p as can be sent without waiting, and returns the rest:
// all of it where there is no descriptor to try.
func (c *Conn) TryWrite(p []byte) (rest []byte, err error) {
	if len(p) == 0 || c.raw == nil {
		return p, nil
	}
	c.out, c.writeErr, c.once = p, nil, true
	err = c.raw.Write(c.onOut)
	rest, c.out, c.once = c.out, nil, false
	if c.writeErr != nil {
		err = c.writeErr
	}
	return rest, err
}

// writable is called with the descriptor when it may take bytes.
func (c *Conn) writable(fd uintptr) bool {
	for len(c.out) > 0 {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&c.out[0])), uintptr(len(c.out)),
			syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			c.out = c.out[n:]
		case syscall.EINTR:
		case syscall.EAGAIN:
			return c.once
		default:
			c.writeErr = os.NewSyscallError("send", errno)
			return true
		}
	}
	return true
}

// Wake makes Loop return os.ErrDeadlineExceeded, now or when its handler
// returns. There is no way back.
func (c *Conn) Wake() {
	c.woken.Store(true)
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

// Nudge makes Loop show its handler what is in hand, be it nothing, soon. Anybody
// may call it.
func (c *Conn) Nudge() {
	c.nudging.Lock()
	defer c.nudging.Unlock()
	c.nudged = true
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

// Probe is called now and then, say each second, by one goroutine. It reports
// whether the peer has ended the stream unseen, asking the kernel only once for
// each quiet period.
func (c *Conn) Probe() (ended bool) {
	switch c.busy.Load() {
	case 0:
		return false
	case 2:
		c.busy.CompareAndSwap(2, 1)
		return false
	}
	if !c.busy.CompareAndSwap(1, 0) {
		return false
	}
	return c.Ended()
}

// Ended asks the kernel whether the peer has ended the stream and all its bytes
// have been read. It is always false for connections without a descriptor.
func (c *Conn) Ended() (ended bool) {
	if c.raw == nil {
		return false
	}
	var b [1]byte
	err := c.raw.Control(func(fd uintptr) {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), 1,
			syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		ended = errno == 0 && n == 0 || errno != 0 && errno != syscall.EAGAIN && errno != syscall.EINTR
	})
	return ended || err != nil
}

// Unread asks the kernel whether there is anything that Loop has not read: bytes,
// the end of the stream, or an error. It is always false for connections without a
// descriptor.
func (c *Conn) Unread() (unread bool) {
	if c.raw == nil {
		return false
	}
	var b [1]byte
	err := c.raw.Control(func(fd uintptr) {
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), 1,
			syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		unread = errno != syscall.EAGAIN && errno != syscall.EINTR
	})
	return unread || err != nil
}

// HeardFirst reports whether the last data from the peer is known to have arrived
// before the last data to it was sent. The kernel counts in milliseconds or more, so
// false often means that it was close.
func (c *Conn) HeardFirst() (first bool) {
	var info [tcpInfoLength]byte
	return c.raw != nil && readTCPInfo(c.raw, info[:]) &&
		binary.NativeEndian.Uint32(info[tcpInfoDataRecv:]) > binary.NativeEndian.Uint32(info[tcpInfoDataSent:])
}

// Close closes the connection; Loop and Write return. Like every Close of a
// socket it waits for a handler that is running, so a handler must not call it.
func (c *Conn) Close() error {
	c.closed.Store(true)
	return c.nc.Close()
}
