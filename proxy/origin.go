package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"pgproxy/wire"
)

// Where a client comes from, if a load balancer stands in front. Such a one says
// so in a header in front of everything else, TLS included: the PROXY protocol of
// HAProxy, versions 1 and 2 (proxy-protocol.txt in its sources). It is believed of
// the addresses of proxy_protocol only, which must send one; from all others it
// is a malformed startup packet.

// origin is the two ends of a client's connection.
type origin struct{ remote, local net.Addr }

// The bounds of headers in bytes: version 1 by its definition; of version 2 what
// stands behind the addresses (TLVs) is read and dropped.
const (
	maxHeader1 = 107
	maxHeader2 = 2 << 10
)

// signature2 begins a header of version 2.
var signature2 = []byte("\r\n\r\n\x00\r\nQUIT\n")

// headerError says what is wrong with a header.
type headerError struct{ text string }

func (e *headerError) Error() string { return e.text }

func badHeader(format string, args ...any) error { return &headerError{fmt.Sprintf(format, args...)} }

// takeOrigin reads the PROXY header of a client that must send one.
func (s *Session) takeOrigin() error {
	own := s.origin.Load()
	tcp, ok := own.remote.(*net.TCPAddr)
	if !ok {
		return nil
	}
	p := &s.srv.current.Load().Config.Proxy
	if !p.SendsHeader(tcp.AddrPort().Addr()) {
		return nil
	}
	o, err := readHeader(s.nc)
	var bad *headerError
	switch {
	case errors.As(err, &bad):
		return wire.Fatalf(wire.CodeProtocolViolation, "PROXY header: %v", bad)
	case err != nil:
		return err
	case o != nil:
		s.origin.Store(o)
	}
	return nil
}

// readHeader reads a header and not a byte more. nil says that the connection is
// the load balancer's own, as for a health check.
func readHeader(r io.Reader) (*origin, error) {
	var head [16]byte
	// The shortest header of version 1 is "PROXY UNKNOWN\r\n".
	if _, err := io.ReadFull(r, head[:12]); err != nil {
		return nil, err
	}
	switch {
	case bytes.Equal(head[:12], signature2):
		if _, err := io.ReadFull(r, head[12:]); err != nil {
			return nil, err
		}
		return readHeader2(r, head[12], head[13], int(binary.BigEndian.Uint16(head[14:])))
	case bytes.HasPrefix(head[:], []byte("PROXY ")):
		return readHeader1(r, head[:12])
	}
	return nil, badHeader("there is none, and proxy_protocol wants one of this address")
}

func readHeader1(r io.Reader, begin []byte) (*origin, error) {
	line := append(make([]byte, 0, maxHeader1), begin...)
	for !bytes.HasSuffix(line, []byte("\r\n")) {
		if len(line) == maxHeader1 {
			return nil, badHeader("version 1 without an end of line")
		}
		line = line[:len(line)+1]
		if _, err := io.ReadFull(r, line[len(line)-1:]); err != nil {
			return nil, err
		}
	}
	f := strings.Split(string(line[:len(line)-2]), " ")
	switch {
	case f[1] == "UNKNOWN":
		return nil, nil
	case len(f) != 6 || f[1] != "TCP4" && f[1] != "TCP6":
		return nil, badHeader("version 1 that is malformed")
	}
	remote, err := endpoint(f[2], f[4], f[1])
	if err != nil {
		return nil, err
	}
	local, err := endpoint(f[3], f[5], f[1])
	if err != nil {
		return nil, err
	}
	return &origin{remote, local}, nil
}

// endpoint reads an address and a port of version 1.
func endpoint(host, port, family string) (net.Addr, error) {
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.Zone() != "" || ip.Is4() != (family == "TCP4") {
		return nil, badHeader("version 1 with the address %q for %s", host, family)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || len(port) > 1 && port[0] == '0' {
		return nil, badHeader("version 1 with the port %q", port)
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, uint16(n))), nil
}

func readHeader2(r io.Reader, command, family byte, size int) (*origin, error) {
	if command>>4 != 2 || size > maxHeader2 {
		return nil, badHeader("version 2 with command %#x and %d bytes", command, size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	switch command & 0xf {
	case 0: // LOCAL
		return nil, nil
	case 1: // PROXY
	default:
		return nil, badHeader("version 2 with command %#x", command)
	}
	n := 0
	switch family {
	case 0x11: // TCP over IPv4
		n = 4
	case 0x21: // TCP over IPv6
		n = 16
	default: // unspecified, UDP, Unix sockets: there is no address to use
		return nil, nil
	}
	if len(body) < 2*n+4 {
		return nil, badHeader("version 2 that is too short for its addresses")
	}
	at := func(addr, port int) net.Addr {
		ip, _ := netip.AddrFromSlice(body[addr : addr+n])
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, binary.BigEndian.Uint16(body[port:])))
	}
	return &origin{remote: at(0, 2*n), local: at(n, 2*n+2)}, nil
}
