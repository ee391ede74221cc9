package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/pool"
	"pgproxy/wire"
)

// Replication connections: pg_basebackup, pg_receivewal, standbys and logical
// subscriptions. Such a client has a connection to the primary of its own, in the
// walsender's protocol: simple queries and streams of COPY in both directions. What
// comes on one side goes out on the other; only the types of messages are looked
// at.

// replication is what such a client has.
type replication struct {
	kind string // physical or logical, as SHOW CLIENTS says

	stream atomic.Pointer[backend.Stream]

	// Atomic: what the messages so far say.
	pending   atomic.Int64 // queries without their ReadyForQuery
	streaming atomic.Bool  // both sides stream, which has no end by itself
	goodbye   atomic.Bool  // the client has said Terminate
}

// busy reports whether a command is under way that will come to an end.
func (r *replication) busy() bool { return r.pending.Load() > 0 && !r.streaming.Load() }

// end cuts the connection to the server.
func (r *replication) end() {
	if st := r.stream.Load(); st != nil {
		_ = st.SetDeadline(time.Unix(1, 0))
	}
}

// replicationKind reads the startup parameter: "" is an ordinary session.
func replicationKind(value string) (kind string, err error) {
	switch v := strings.ToLower(value); {
	case value == "" || boolPrefix(v, "false", 1) || boolPrefix(v, "no", 1) || boolPrefix(v, "off", 2) || v == "0":
		return "", nil
	case v == "database":
		return "logical", nil
	case boolPrefix(v, "true", 1) || boolPrefix(v, "yes", 1) || v == "on" || v == "1":
		return "physical", nil
	}
	return "", wire.Fatalf(wire.CodeInvalidParameterValue, "invalid value for parameter \"replication\": %q", value).
		WithHint("Valid values are: \"false\", 0, \"true\", 1, \"database\".")
}

// boolPrefix reports whether v is word or a prefix of at least n letters.
func boolPrefix(v, word string, n int) bool { return len(v) >= n && strings.HasPrefix(word, v) }

// replicationDatabase returns the entry for a client of physical replication, which
// names no database of the server: libpq says "replication" where it has nothing
// better.
func replicationDatabase(cfg *config.Config, name string) (string, error) {
	if _, ok := cfg.Database(name); ok {
		return name, nil
	}
	if len(cfg.Databases) == 1 {
		for only := range cfg.Databases {
			return only, nil
		}
	}
	return "", wire.Fatalf(wire.CodeUndefinedDatabase, "database %q does not exist", name).
		WithHint("For physical replication too the database in the connection string is the entry whose primary is meant.")
}

// replicate serves a client that has logged in until one side ends.
func (s *Session) replicate(su *wire.Startup) error {
	r := s.replica.Load()
	cfg := s.srv.current.Load().Config.Proxy
	if n := s.srv.replicas.Add(1); n > int64(cfg.MaxReplicationConnections) {
		s.srv.replicas.Add(-1)
		return wire.Fatalf(wire.CodeTooManyConnections, "no more replication connections allowed (max_replication_connections)")
	}
	defer s.srv.replicas.Add(-1)
	st, p, err := s.openStream(cfg, su, r.kind)
	if err != nil {
		return err
	}
	defer p.Leave(st)
	r.stream.Store(st)
	_ = s.nc.SetDeadline(time.Time{})
	if err := s.endReason(); err != nil { // end has come before there was a stream
		return err
	}
	var out []byte
	for _, x := range sorted(st.Params) {
		out = wire.AppendParameterStatus(out, x.Name, x.Value)
	}
	out = wire.AppendBackendKeyData(out, s.pid, s.secret)
	if _, err := s.link.Write(wire.AppendReadyForQuery(out, wire.TxIdle)); err != nil {
		return err
	}
	s.srv.logins.Add(1)
	if s.srv.trace.Login != nil {
		s.srv.trace.Login(true)
	}
	if cfg.LogConnections {
		s.log().Info("client connected", "replication", r.kind, "server", st.Addr, "application_name", su.Param("application_name"))
	}
	return s.pump(r, st)
}

// openStream logs in to the primary.
func (s *Session) openStream(cfg config.Proxy, su *wire.Startup, kind string) (*backend.Stream, *pool.Pool, error) {
	params := map[string]string{"replication": "true"}
	if kind == "logical" {
		params["replication"] = "database"
	}
	for _, kv := range su.Params {
		switch name := kv[0]; {
		case name == "user", name == "database", name == "replication", strings.HasPrefix(name, "_pq_."):
		case slices.Contains(cfg.IgnoreStartupParameters, name):
		default:
			params[name] = kv[1]
		}
	}
	if err := s.refresh(); err != nil {
		return nil, nil, err
	}
	patience := cfg.ClientLoginTimeout
	if patience <= 0 {
		patience = time.Hour
	}
	for w := (wait{}); ; {
		p, err := s.primaryPool()
		if err != nil {
			return nil, nil, err
		}
		var st *backend.Stream
		werr := s.waitFor(patience, func(ctx context.Context) error {
			st, err = p.Replicate(ctx, params)
			return nil
		})
		if werr != nil {
			if st != nil {
				p.Leave(st)
			}
			return nil, nil, werr
		}
		if err == nil {
			return st, p, nil
		}
		if errors.Is(err, pool.ErrNoRoom) {
			return nil, nil, wire.Fatalf(wire.CodeTooManyConnections, "no server connection is left for replication").Because(err).
				WithHint("max_host_connections is reached.")
		}
		if refused, _ := backend.Refused(err); !refused && !errors.Is(err, pool.ErrClosed) {
			err = errors.Join(pool.ErrUnreachable, err)
		}
		if err := s.acquireError(err, p, &w); err != nil {
			return nil, nil, err
		}
	}
}

// replicaInfo completes the picture of a client that replicates.
func (s *Session) replicaInfo(i SessionInfo) SessionInfo {
	r := s.replica.Load()
	server := r.stream.Load().Info()
	i.User, i.Database, i.State, i.Replication = s.user, s.database, "active", r.kind
	i.AppName, i.TLS, i.Server, i.Seen = server.AppName, backend.DescribeTLS(s.link), &server, s.since
	return i
}

// errSplit ends a session whose client has been sent a part of a message: nothing
// can be said any more.
var errSplit = errors.New("in the middle of a message")

// pump relays until one side ends. The client's direction has a goroutine of its
// own, which it waits for.
func (s *Session) pump(r *replication, st *backend.Stream) error {
	up := make(chan error, 1)
	s.srv.goes.Add(1)
	go func() {
		defer s.srv.goes.Done()
		var f frames
		err := relayBytes(st, s.link, &f, func(typ byte) {
			switch typ {
			case wire.Query:
				r.pending.Add(1)
			case wire.Terminate:
				r.goodbye.Store(true)
			}
		})
		if !r.goodbye.Load() {
			_ = st.Close() // the client is gone: the server notices by it
		}
		up <- err
	}()
	var f frames
	var last byte
	err := relayBytes(s.link, st, &f, func(typ byte) {
		switch typ {
		case wire.CopyBothResponse:
			r.streaming.Store(true)
		case wire.ReadyForQuery:
			r.streaming.Store(false)
			r.pending.Add(-1)
		}
		last = typ
	})
	_ = st.Close()
	if f.rest > 0 || f.n > 0 || f.cut {
		s.wmu.Lock()
		s.werr = errSplit
		s.wmu.Unlock()
	}
	_ = s.nc.SetReadDeadline(time.Unix(1, 0))
	gone := <-up
	_ = s.nc.SetReadDeadline(time.Time{})
	switch {
	case s.endReason() != nil:
		return s.endReason()
	case r.goodbye.Load():
		return errTerminate
	case gone != nil && !errors.Is(gone, net.ErrClosed) && !isTimeout(gone):
		return gone
	case last == wire.ErrorResponse && errors.Is(err, io.EOF):
		return &lostServer{err: err} // its own words have been relayed
	}
	return &lostServer{err: err, tell: wire.Fatalf(wire.CodeConnectionFailure, "server closed the connection unexpectedly")}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// streamBuffer is the most that is relayed at once, in bytes.
const streamBuffer = 64 << 10

// relayBytes copies until one side ends. seen is told of each message that begins.
func relayBytes(dst io.Writer, src io.Reader, f *frames, seen func(typ byte)) error {
	buf := make([]byte, streamBuffer)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if ferr := f.walk(buf[:n], seen); ferr != nil {
				return ferr
			}
			if _, werr := dst.Write(buf[:n]); werr != nil {
				f.cut = true
				return werr
			}
		}
		if err != nil {
			return err
		}
	}
}

// frames follows where messages begin in a stream.
type frames struct {
	head [wire.HeaderLen]byte
	n    int  // bytes of head in hand
	rest int  // bytes left of the message
	cut  bool // not all that was walked over has been written
}

// walk goes over the next bytes.
func (f *frames) walk(p []byte, seen func(typ byte)) error {
	for len(p) > 0 {
		if f.rest > 0 {
			n := min(f.rest, len(p))
			f.rest -= n
			p = p[n:]
			continue
		}
		n := copy(f.head[f.n:], p)
		f.n += n
		p = p[n:]
		if f.n < wire.HeaderLen {
			return nil
		}
		h, err := wire.ReadHeader(f.head[:], 1<<31-1)
		if err != nil {
			return wire.Fatalf(wire.CodeProtocolViolation, "invalid length of message type %q", string(rune(h.Type)))
		}
		f.n, f.rest = 0, h.Body
		seen(h.Type)
	}
	return nil
}
