package backend

import (
	"context"
	"net"
	"time"
)

// Stream is a server connection in the replication protocol: one client has it for
// its whole life, and bytes go over it as they come. Read and Write are those of the
// connection.
type Stream struct {
	net.Conn
	Kind   string            // logical or physical
	Addr   string            // as configured
	PID    uint32            // of the server's process
	Params map[string]string // as reported at login
	Since  time.Time

	secret  []byte
	connect func(context.Context) (net.Conn, error)
	limits  Limits
}

// Replicate connects and logs in with the parameters given, one of which is
// replication. A refusal by the server is returned as *wire.Error, wrapped with the
// server's address.
func (d *Dialer) Replicate(ctx context.Context, l Login, params map[string]string) (*Stream, error) {
	hj, _, err := d.login(ctx, l, params, "")
	if err != nil {
		return nil, err
	}
	network, dialed, connect := hj.Conn.RemoteAddr().Network(), hj.Conn.RemoteAddr().String(), d.again(l)
	kind := "physical"
	if params["replication"] == "database" {
		kind = "logical"
	}
	return &Stream{
		Kind: kind, Conn: hj.Conn, Addr: l.Server.Addr(), PID: hj.PID, Params: hj.ParameterStatuses, Since: time.Now(), secret: hj.SecretKey,
		connect: func(ctx context.Context) (net.Conn, error) { return connect(ctx, network, dialed) },
		limits:  d.Limits,
	}, nil
}

// Cancel asks the server to cancel what it does on this connection, and returns
// when it has.
func (s *Stream) Cancel(ctx context.Context) error {
	if s.limits.CancelWait > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, s.limits.CancelWait)
		defer stop()
	}
	_, err := cancelRequest(ctx, s.connect, s.Addr, s.PID, s.secret)
	return err
}

// Info returns what is known of it.
func (s *Stream) Info() Info {
	i := Info{Addr: s.Addr, PID: s.PID, Since: s.Since, Requested: s.Since, Active: true, AppName: s.Params["application_name"], TLS: DescribeTLS(s.Conn)}
	if a := s.LocalAddr(); a != nil {
		i.LocalAddr = a.String()
	}
	return i
}
