package netio

import (
	"encoding/binary"
	"net"
	"syscall"
	"time"
	"unsafe"
)

// Offsets of further fields of struct tcp_info in linux/tcp.h: how often in a row data
// was sent again, and probes of a closed window, one byte each; the pause until that
// happens again, in microseconds; and how long ago, in milliseconds, the peer has last
// acknowledged anything.
const (
	tcpInfoRetransmits = 2
	tcpInfoProbes      = 3
	tcpInfoRTO         = 8
	tcpInfoAckRecv     = 56
	tcpInfoSilent      = 60 // so much of it is needed
)

// What is no more an accident: so many probes without an answer, and such a pause, which
// is doubled each time.
const (
	manyProbes = 3
	longPause  = time.Minute
)

// Silent reports whether a peer is dead by all appearances: it was sent something again
// and again, and has acknowledged nothing for longer than d, and up to twice that. That
// is what TCP_USER_TIMEOUT finds, but for a peer that is there and does not read: it
// acknowledges probes. Of connections other than TCP nothing is known.
func Silent(nc net.Conn, d time.Duration) (silent bool) {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	var info [tcpInfoSilent]byte
	size := uint32(len(info))
	err = raw.Control(func(fd uintptr) {
		_, _, errno := syscall.RawSyscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, syscall.TCP_INFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		if errno == 0 && size == tcpInfoSilent {
			ms, us := info[tcpInfoAckRecv:], info[tcpInfoRTO:]
			again := info[tcpInfoRetransmits] > 0 && time.Duration(binary.NativeEndian.Uint32(us))*time.Microsecond > min(d, longPause)
			silent = (again || info[tcpInfoProbes] >= manyProbes) && time.Duration(binary.NativeEndian.Uint32(ms))*time.Millisecond > d
		}
	})
	return silent && err == nil
}
