package wire_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

func FuzzReadStartup(f *testing.F) {
	f.Add(pgtest.StartupMessage(wire.Protocol30, "user", "u", "options", "-c a=b"))
	f.Add(pgtest.CancelRequest(1, []byte("abcd")))
	f.Add(pgtest.SSLRequest())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= 4 {
			if n, err := wire.StartupLen(p); err == nil && (n < 8 || n > wire.MaxStartup) {
				t.Errorf("length %d", n)
			}
		}
		s, err := wire.ReadStartup(p)
		if err != nil {
			return
		}
		switch s.Kind {
		case wire.StartCancel:
			if got := wire.AppendCancel(nil, s.PID, s.Secret); !bytes.Equal(got[4:], p[4:]) {
				t.Errorf("%q became %q", p, got)
			}
		case wire.StartSession:
			var pairs []string
			for _, kv := range s.Params {
				if strings.ContainsRune(kv[0]+kv[1], 0) || kv[0] == "" {
					t.Errorf("parameter %q", kv)
				}
				pairs = append(pairs, kv[0], kv[1])
			}
			if got := pgtest.StartupMessage(s.Protocol, pairs...); !bytes.Equal(got[4:], p[4:]) {
				t.Errorf("%q became %q", p, got)
			}
			var oracle pgproto3.StartupMessage
			if s.Protocol == wire.Protocol30 && oracle.Decode(p[4:]) == nil {
				for k, v := range oracle.Parameters {
					if s.Param(k) != v {
						t.Errorf("%s is %q, pgproto3 has %q", k, s.Param(k), v)
					}
				}
			}
		}
	})
}

func FuzzReadHeader(f *testing.F) {
	f.Add([]byte("Q\x00\x00\x00\x04"), 10)
	f.Add([]byte("Q\xff\xff\xff\xff"), 1<<31-1)
	f.Fuzz(func(t *testing.T, p []byte, limit int) {
		if len(p) < wire.HeaderLen || limit < 0 {
			return
		}
		h, err := wire.ReadHeader(p, limit)
		if err != nil {
			return
		}
		if h.Body < 0 || h.Body+4 > limit || !bytes.Equal(wire.AppendHeader(nil, h.Type, h.Body), p[:wire.HeaderLen]) {
			t.Errorf("%q with limit %d: %+v", p, limit, h)
		}
	})
}

func FuzzReadParse(f *testing.F) {
	f.Add([]byte("s\x00select $1\x00\x00\x01\x00\x00\x00\x17"))
	f.Add([]byte("\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := wire.ReadParse(body)
		var oracle pgproto3.Parse
		oerr := oracle.Decode(body)
		if err != nil {
			return
		}
		if oerr != nil || oracle.Name != string(m.Name) || oracle.Query != string(m.Query) ||
			int(binary.BigEndian.Uint16(m.OIDs)) != len(oracle.ParameterOIDs) {
			t.Errorf("%q: %q, pgproto3 %+v (%v)", body, m, oracle, oerr)
		}
		if got := wire.AppendParse(nil, string(m.Name), m.Query, m.OIDs); !bytes.Equal(got[wire.HeaderLen:], body) {
			t.Errorf("%q became %q", body, got)
		}
	})
}

func FuzzReadBindNames(f *testing.F) {
	f.Add([]byte("p\x00s\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("p\x00s"))
	f.Fuzz(func(t *testing.T, body []byte) {
		portal, statement, n, ok := wire.ReadBindNames(body)
		var oracle pgproto3.Bind
		if oerr := oracle.Decode(body); oerr == nil && (!ok || oracle.DestinationPortal != string(portal) || oracle.PreparedStatement != string(statement)) {
			t.Errorf("%q: %q %q %v, pgproto3 %+v", body, portal, statement, ok, oracle)
		}
		if !ok {
			return
		}
		got := append(wire.AppendBindHead(nil, portal, string(statement), len(body)-n), body[n:]...)
		if !bytes.Equal(got[wire.HeaderLen:], body) {
			t.Errorf("%q became %q", body, got)
		}
		if _, err := wire.ReadHeader(got, len(got)); err != nil {
			t.Error(err)
		}
	})
}

func FuzzReadError(f *testing.F) {
	f.Add([]byte("SERROR\x00VERROR\x00C42601\x00Msyntax\x00\x00"))
	f.Add([]byte("S"))
	f.Fuzz(func(t *testing.T, body []byte) {
		e := wire.ReadError(body)
		var oracle pgproto3.ErrorResponse
		if oracle.Decode(body) == nil && (oracle.Code != e.Code || oracle.Message != e.Message || oracle.Detail != e.Detail || oracle.Hint != e.Hint) {
			t.Errorf("%q: %+v, pgproto3 %+v", body, e, oracle)
		}
		p := e.Append(nil)
		again := wire.ReadError(p[wire.HeaderLen:])
		if *again != *e {
			t.Errorf("%+v became %+v", e, again)
		}
	})
}

func FuzzReadTarget(f *testing.F) {
	f.Add([]byte("Sx\x00"))
	f.Fuzz(func(t *testing.T, body []byte) {
		kind, name, err := wire.ReadTarget(body)
		if err == nil && !bytes.Equal(wire.AppendTarget(nil, wire.Close, kind, string(name))[wire.HeaderLen:], body) {
			t.Errorf("%q: %c %q", body, kind, name)
		}
		n, v, err := wire.ReadParameterStatus(body)
		if err == nil && !bytes.Equal(wire.AppendParameterStatus(nil, string(n), string(v))[wire.HeaderLen:], body) {
			t.Errorf("%q: %q %q", body, n, v)
		}
	})
}

func FuzzOptionSettings(f *testing.F) {
	f.Add(`-c a=b --work-mem=1 -cx=\ y`)
	f.Add(`\`)
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := wire.SplitOptions(s), splitLikePostgres(s); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", s, got, want)
		}
		out, err := wire.OptionSettings(s)
		if err != nil && out != nil {
			t.Errorf("%q: settings and an error", s)
		}
		for _, kv := range out {
			if strings.Contains(kv[0], "-") || strings.Contains(kv[0], "=") {
				t.Errorf("%q: name %q", s, kv[0])
			}
		}
	})
}
