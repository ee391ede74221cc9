package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pgproxy/wire"
)

// With so_reuseport the kernel gives each connection to one of the sockets that
// listen on an address, when its first packet comes. What a socket has got by then is
// reset when it is closed, although others would take it. So before a drain closes
// one, it has the kernel send new connections to another process (a classic BPF
// program that names the socket by its place), and waits until those that are on
// their way have come. The program stays behind with the others, who take it away
// sooner or later (sweep.go). See socket(7), SO_ATTACH_REUSEPORT_CBPF.

// steerWait is how long a handshake may take that has begun with the first packet.
const steerWait = 500 * time.Millisecond

// probeTimeout bounds how long the process that gets a probe may take to answer.
const probeTimeout = 5 * time.Second

// ReusePort lets other processes listen on the same address.
func ReusePort(_, _ string, raw syscall.RawConn) error {
	return withFD(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
}

func withFD(raw syscall.RawConn, f func(fd int) error) error {
	var ferr error
	err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) })
	return errors.Join(err, ferr)
}

// steered is a socket whose connections go to another one.
type steered struct {
	raw   syscall.RawConn
	place uint32 // of the other
}

// steer turns new connections away from the TCP sockets, where another process
// takes them, and returns when none are on their way: the sockets are to be closed
// then. ctx cuts that short.
func (s *Server) steer(ctx context.Context) {
	if !s.current.Load().Config.Proxy.SoReuseport {
		return
	}
	var away []*steered
	for _, l := range s.Sockets() {
		if l.Addr().Network() != "tcp" {
			continue
		}
		st, err := s.steerSocket(ctx, l.Listener)
		switch {
		case err != nil:
			s.log.Warn("connections that are being made may be refused", "address", l.Addr().String(), "error", err)
		case st != nil:
			away = append(away, st)
		}
	}
	if len(away) == 0 {
		return
	}
	select {
	case <-time.After(steerWait):
	case <-ctx.Done():
	}
	for _, st := range away {
		_ = steerTo(st.raw, st.place) // somebody may have undone it
	}
}

// steerSocket returns nil if there is nobody else.
func (s *Server) steerSocket(ctx context.Context, l net.Listener) (*steered, error) {
	sc, ok := l.(syscall.Conn)
	if !ok {
		return nil, nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	if others, err := sharers(raw); err != nil || others == 0 {
		return nil, err
	}
	// Nobody tells a socket its place. Of two places one is another's.
	if err := steerTo(raw, 0); err != nil {
		return nil, err
	}
	st := &steered{raw: raw}
	mine, err := s.probe(ctx, l.Addr().String())
	if err == nil && mine {
		st.place = 1
		err = steerTo(raw, st.place)
	}
	if err != nil {
		unsteer(raw)
		return nil, err
	}
	return st, nil
}

// steerTo has the kernel give new connections to the socket at a place of those
// that share an address.
func steerTo(raw syscall.RawConn, place uint32) error {
	program := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: place}}
	return withFD(raw, func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: 1, Filter: &program[0]})
	})
}

// unsteerAll undoes what processes that have ended have left, unless this one is
// about to end itself.
func (s *Server) unsteerAll() {
	if s.draining.Load() || !s.current.Load().Config.Proxy.SoReuseport {
		return
	}
	for _, l := range s.Sockets() {
		if sc, ok := l.Listener.(syscall.Conn); ok && l.Addr().Network() == "tcp" {
			if raw, err := sc.SyscallConn(); err == nil {
				unsteer(raw)
			}
		}
	}
}

// unsteer undoes steerTo, whoever has done it.
func unsteer(raw syscall.RawConn) {
	_ = withFD(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0) })
}

// probe connects to an address and reports whether this server has got it.
func (s *Server) probe(ctx context.Context, addr string) (mine bool, err error) {
	ctx, stop := context.WithTimeout(ctx, probeTimeout)
	defer stop()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false, err
	}
	defer func() { _ = nc.Close() }()
	deadline, _ := ctx.Deadline()
	_ = nc.SetDeadline(deadline)
	if _, err := nc.Write(wire.AppendSSLRequest(nil)); err != nil {
		return false, err
	}
	// Whatever comes, even the end, says that somebody has taken it.
	if _, err := nc.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return false, err
	}
	self := nc.LocalAddr().String()
	for _, ses := range s.list() {
		if ses.nc.RemoteAddr().String() == self {
			return true, nil
		}
	}
	return false, nil
}

// sharers counts the other sockets that listen on a socket's address: proc_net(5).
func sharers(raw syscall.RawConn) (n int, err error) {
	var stat unix.Stat_t
	if err := withFD(raw, func(fd int) error { return unix.Fstat(fd, &stat) }); err != nil {
		return 0, err
	}
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if n := sharersIn(string(text), stat.Ino); n >= 0 {
			return n, nil
		}
	}
	return 0, fmt.Errorf("the socket is not among those of /proc/self/net")
}

// sharersIn counts in a table of sockets those that share the address of one; -1:
// that is not there.
func sharersIn(table string, inode uint64) int {
	const local, state, node, listening = 1, 3, 9, "0A"
	address, counts := "", make(map[string]int)
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) <= node || f[state] != listening {
			continue
		}
		counts[f[local]]++
		if f[node] == fmt.Sprint(inode) {
			address = f[local]
		}
	}
	return counts[address] - 1
}
