package proxy

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
)

// header2 makes a header of version 2.
func header2(command, family byte, body ...byte) string {
	p := append(bytes.Clone(signature2), command, family)
	p = binary.BigEndian.AppendUint16(p, uint16(len(body)))
	return string(append(p, body...))
}

func TestPROXYHeader(t *testing.T) {
	v4 := []byte{10, 0, 0, 7, 10, 0, 0, 1, 0x1f, 0x90, 0x19, 0x20}
	v6 := append(append(append(make([]byte, 15), 7), append(make([]byte, 15), 1)...), 0x1f, 0x90, 0x19, 0x20)
	for _, tt := range []struct {
		name, text string
		want       string // remote and local; "-": of the load balancer's own
		wrong      string
	}{
		{"version 1, IPv4", "PROXY TCP4 10.0.0.7 10.0.0.1 8080 6432\r\n", "10.0.0.7:8080 10.0.0.1:6432", ""},
		{"version 1, IPv6", "PROXY TCP6 ::7 ::1 8080 6432\r\n", "[::7]:8080 [::1]:6432", ""},
		{"version 1, unknown", "PROXY UNKNOWN\r\n", "-", ""},
		{"version 1, unknown with more", "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "-", ""},
		{"version 1, port of five digits", "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255:65535 255.255.255.255:65535", ""},
		{"version 1, IPv4 as IPv6", "PROXY TCP6 10.0.0.7 10.0.0.1 8080 6432\r\n", "", "address"},
		{"version 1, name", "PROXY TCP4 localhost 10.0.0.1 8080 6432\r\n", "", "address"},
		{"version 1, zone", "PROXY TCP6 fe80::1%eth0 ::1 8080 6432\r\n", "", "address"},
		{"version 1, port too great", "PROXY TCP4 10.0.0.7 10.0.0.1 65536 6432\r\n", "", "port"},
		{"version 1, port with a zero", "PROXY TCP4 10.0.0.7 10.0.0.1 08080 6432\r\n", "", "port"},
		{"version 1, no port", "PROXY TCP4 10.0.0.7 10.0.0.1 8080\r\n", "", "malformed"},
		{"version 1, two spaces", "PROXY TCP4  10.0.0.7 10.0.0.1 8080 6432\r\n", "", "malformed"},
		{"version 1, no end", "PROXY TCP4 " + strings.Repeat("1", 200), "", "end of line"},
		{"version 2, IPv4", header2(0x21, 0x11, v4...), "10.0.0.7:8080 10.0.0.1:6432", ""},
		{"version 2, IPv6", header2(0x21, 0x21, v6...), "[::7]:8080 [::1]:6432", ""},
		{"version 2, more behind", header2(0x21, 0x11, append(bytes.Clone(v4), 4, 0, 1, 'x')...), "10.0.0.7:8080 10.0.0.1:6432", ""},
		{"version 2, local", header2(0x20, 0x00), "-", ""},
		{"version 2, Unix socket", header2(0x21, 0x31, make([]byte, 216)...), "-", ""},
		{"version 2, too short", header2(0x21, 0x11, v4[:11]...), "", "too short"},
		{"version 2, command", header2(0x2f, 0x11, v4...), "", "command"},
		{"version 3", header2(0x31, 0x11, v4...), "", "command"},
		{"version 2, too long", header2(0x21, 0x11, make([]byte, 4000)...), "", "4000 bytes"},
		{"a startup packet", "\x00\x00\x00\x08\x04\xd2\x16\x2f....", "", "there is none"},
		{"nothing", "", "", "EOF"},
		{"half", header2(0x21, 0x11, v4...)[:20], "", "EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := strings.NewReader(tt.text + "rest")
			if tt.wrong == "EOF" {
				r = strings.NewReader(tt.text)
			}
			o, err := readHeader(r)
			if tt.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wrong) {
					t.Errorf("found %v, want %q", err, tt.wrong)
				}
				return
			}
			got := "-"
			if o != nil {
				got = o.remote.String() + " " + o.local.String()
			}
			if err != nil || got != tt.want {
				t.Errorf("found %s, %v, want %s", got, err, tt.want)
			}
			if rest, _ := io.ReadAll(r); string(rest) != "rest" {
				t.Errorf("%q is left", rest)
			}
		})
	}
}

func FuzzPROXYHeader(f *testing.F) {
	f.Add([]byte("PROXY TCP4 10.0.0.7 10.0.0.1 8080 6432\r\n"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte(header2(0x21, 0x11, 10, 0, 0, 7, 10, 0, 0, 1, 0x1f, 0x90, 0x19, 0x20)))
	f.Add([]byte(header2(0x20, 0x00)))
	f.Fuzz(func(t *testing.T, p []byte) {
		r := bytes.NewReader(p)
		if o, err := readHeader(r); err == nil && o != nil && (o.remote == nil || o.local == nil) {
			t.Error("an origin without addresses")
		}
		if read := len(p) - r.Len(); read > maxHeader2+16 {
			t.Errorf("%d bytes were read", read)
		}
	})
}
