package netio

import (
	"encoding/binary"
	"net"
	"syscall"
	"time"
	"unsafe"
)

// Offsets of fields of struct tcp_info in linux/tcp.h: how often in a row data was sent
// again, and probes of a closed window, one byte each; the pause until that happens
// again, in microseconds; and how long ago, in milliseconds, data was last sent, was last
// received, and the peer has last acknowledged anything.
const (
	tcpInfoRetransmits = 2
	tcpInfoProbes      = 3
	tcpInfoRTO         = 8
	tcpInfoDataSent    = 44
	tcpInfoDataRecv    = 52
	tcpInfoAckRecv     = 56
	tcpInfoLength      = 60 // so much of it is needed
)

// readTCPInfo asks the kernel for the first bytes of a connection's tcp_info. It reports
// false if there are not as many, or it is no TCP.
func readTCPInfo(raw syscall.RawConn, info []byte) (ok bool) {
	err := raw.Control(func(fd uintptr) {
		size := uint32(len(info))
		_, _, errno := syscall.RawSyscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, syscall.TCP_INFO,
			uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&size)), 0)
		ok = errno == 0 && int(size) == len(info)
	})
	return ok && err == nil
}

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
	var info [tcpInfoLength]byte
	if !readTCPInfo(raw, info[:]) {
		return false
	}
	pause := time.Duration(binary.NativeEndian.Uint32(info[tcpInfoRTO:])) * time.Microsecond
	acknowledged := time.Duration(binary.NativeEndian.Uint32(info[tcpInfoAckRecv:])) * time.Millisecond
	again := info[tcpInfoRetransmits] > 0 && pause > min(d, longPause)
	return (again || info[tcpInfoProbes] >= manyProbes) && acknowledged > d
}
