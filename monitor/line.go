package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pgproxy/backend"
	"pgproxy/router"
)

// maxAnswer bounds the messages that a server may send to a check.
const maxAnswer = 1 << 20

// goodbye bounds the polite end of a connection.
const goodbye = 200 * time.Millisecond

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// The questions of a check. The role is asked once, in a subquery that is not
// pulled up, because a promotion may come between two calls.
const (
	askRole = `SELECT pg_is_in_recovery()`

	askPositions = `SELECT r,
 CASE WHEN r THEN NULL ELSE pg_current_wal_flush_lsn() END,
 CASE WHEN r THEN NULL ELSE pg_current_wal_insert_lsn() END,
 CASE WHEN r THEN NULL ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END,
 CASE WHEN r THEN pg_last_wal_replay_lsn() END,
 CASE WHEN r THEN pg_last_wal_receive_lsn() END,
 CASE WHEN r THEN (SELECT count(*) FROM pg_stat_wal_receiver) END,
 CASE WHEN r THEN (SELECT max(received_tli) FROM pg_stat_wal_receiver) END,
 CASE WHEN r THEN (extract(epoch FROM clock_timestamp() - coalesce(pg_last_xact_replay_timestamp(), pg_postmaster_start_time())) * 1000000)::bigint END
FROM (SELECT pg_is_in_recovery() AS r OFFSET 0) s`

	// The transaction ids below it are known to a replica: see router.Server.Horizon.
	// The statement's snapshot is taken before anything in it is called, so a server
	// that is in recovery then had given out no id of its own when it was taken; NULL:
	// it was promoted meanwhile.
	askXmax = `SELECT CASE WHEN pg_is_in_recovery() THEN pg_snapshot_xmax(pg_current_snapshot()) END`

	askLayout = `SELECT pg_size_bytes(current_setting('wal_segment_size')), current_setting('wal_block_size')`

	askIdentity = `SELECT (SELECT system_identifier FROM pg_control_system()),
 greatest((SELECT timeline_id FROM pg_control_checkpoint()), (SELECT min_recovery_end_timeline FROM pg_control_recovery()))`

	// What a standby is called by its primary, and how a primary waits for its
	// standbys: NULL where the role may not know.
	askNames = `SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
 coalesce((SELECT substring(conninfo FROM 'application_name=([^ ]+)') FROM pg_stat_wal_receiver LIMIT 1), current_setting('cluster_name')),
 (SELECT string_agg(application_name || '=' || sync_state, ',') FROM pg_stat_replication WHERE state = 'streaming')`
)

// identity names a line of history: positions of one can be compared.
type identity struct {
	system   string // "" is not known
	timeline uint32 // 0 is not known
}

// answer is what a server says about itself.
type answer struct {
	stamp      int64 // Nanotime from before it was asked for the positions
	recovery   bool  // it is a replica
	positioned bool  // what follows is known

	id            identity // of a replica: the newest timeline that it is known to have reached
	insert, flush uint64   // of a primary: ends of the last records inserted and flushed
	replay        uint64   // of a replica
	receive       uint64   // of a replica; 0 if it does not stream
	receiving     bool     // a replica's walreceiver is there
	delay         time.Duration

	xmax    uint64 // of a replica: the first transaction id that it does not know; 0 is not known
	remote  string // network address of the server
	started int64  // when the server process began, in microseconds of Unix time; 0 is not known
	name    string // what its primary calls it, or "" if that is not known
	syncs   string // of a primary: sync_state of its standbys
}

// position is where the server's WAL is: inserted by a primary, replayed by a
// replica; 0 if it is not known.
func (a *answer) position() uint64 {
	switch {
	case a == nil || !a.positioned:
		return 0
	case a.recovery:
		return a.replay
	}
	return a.insert
}

// line is a connection to a server for its checks. One goroutine uses it.
type line struct {
	ctx        context.Context // of the server's goroutine: its end interrupts
	login      backend.Login
	conn       net.Conn
	wire       *pgproto3.Frontend
	stop       func() bool
	layout     walLayout
	id         identity // timeline: of a replica, and the highest seen
	identified time.Time
	bare       bool // it refuses to tell positions
	xids       bool // a replica is asked which transaction ids it knows
	noXids     bool // it cannot tell
	started    int64
	name       string
	syncs      string
}

// dialLine connects and logs in.
func dialLine(ctx context.Context, d *backend.Dialer, login backend.Login, deadline time.Time) (*line, error) {
	cfg, err := d.Config(login)
	if err != nil {
		return nil, err
	}
	// A login that breaks off makes pgconn dial again for a cancel request, in a
	// goroutine of its own; there is nothing to cancel.
	var dialed atomic.Bool
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dialed.Swap(true) {
			return nil, net.ErrClosed
		}
		return dial(ctx, network, addr)
	}
	in, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	pc, err := pgconn.ConnectConfig(in, cfg)
	if err != nil {
		return nil, err
	}
	hj, err := pc.Hijack()
	if err != nil {
		return nil, err
	}
	l := &line{ctx: ctx, login: login, conn: hj.Conn, wire: hj.Frontend, layout: defaultLayout}
	l.wire.SetMaxBodyLen(maxAnswer)
	l.stop = context.AfterFunc(ctx, func() { _ = l.conn.SetDeadline(past) })
	return l, nil
}

// remote is the address of the server, without the port.
func (l *line) remote() string {
	host, _, err := net.SplitHostPort(l.conn.RemoteAddr().String())
	if err != nil {
		return l.conn.RemoteAddr().String()
	}
	return host
}

// ask asks for role and positions, and who the server is if that was not asked
// since.
func (l *line) ask(deadline time.Time, since time.Time) (*answer, error) {
	if err := l.conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if err := l.ctx.Err(); err != nil {
		return nil, err
	}
	if l.identified.Before(since) {
		if err := l.identify(); err != nil {
			return nil, err
		}
	}
	a := &answer{stamp: router.Nanotime(), remote: l.remote(), started: l.started, name: l.name, syncs: l.syncs}
	if !l.bare {
		row, err := l.query(askPositions, 9)
		switch {
		case err == nil:
			if err := l.read(a, row); err != nil || !a.recovery || !l.xids {
				return a, err
			}
			switch row, err := l.query(askXmax, 1); {
			case err == nil:
				a.xmax, _ = strconv.ParseUint(row[0], 10, 64)
			case incapable(err):
				l.xids, l.noXids = false, true
			default:
				return nil, err
			}
			return a, nil
		case !incapable(err):
			return nil, err
		}
		l.bare = true
	}
	row, err := l.query(askRole, 1)
	if err != nil {
		return nil, err
	}
	a.recovery = row[0] == "t"
	return a, nil
}

// identify asks what seldom changes. A server may refuse: then it is not known.
func (l *line) identify() error {
	if l.identified.IsZero() {
		switch row, err := l.query(askLayout, 2); {
		case err == nil:
			segment, _ := strconv.ParseUint(row[0], 10, 64)
			page, _ := strconv.ParseUint(row[1], 10, 64)
			if read := (walLayout{segment, page}); read.valid() {
				l.layout = read
			}
		case !refused(err):
			return err
		}
	}
	switch row, err := l.query(askIdentity, 2); {
	case err == nil:
		l.id.system = row[0]
		l.reached(row[1], 10)
	case !refused(err):
		return err
	}
	switch row, err := l.query(askNames, 3); {
	case err == nil:
		l.started, _ = strconv.ParseInt(row[0], 10, 64)
		l.name, l.syncs = row[1], row[2]
	case !refused(err):
		return err
	}
	l.identified = time.Now()
	return nil
}

// reached notes a timeline that the server was on.
func (l *line) reached(text string, base int) {
	if n, err := strconv.ParseUint(text, base, 32); err == nil {
		l.id.timeline = max(l.id.timeline, uint32(n))
	}
}

func (l *line) read(a *answer, row []string) error {
	a.recovery = row[0] == "t"
	if a.recovery {
		l.reached(row[7], 10)
		a.id = l.id
		a.replay, a.positioned = parseLSN(row[4])
		a.receive, _ = parseLSN(row[5])
		a.receiving = row[6] != "0"
		us, err := strconv.ParseInt(row[8], 10, 64)
		a.delay = time.Duration(max(us, 0)) * time.Microsecond
		return err
	}
	flush, ok := parseLSN(row[1])
	insert, ok2 := parseLSN(row[2])
	n, err := strconv.ParseUint(row[3], 16, 32)
	if !ok || !ok2 || err != nil {
		return fmt.Errorf("unexpected answer to a check: %q", row)
	}
	a.id = identity{l.id.system, uint32(n)}
	a.insert, a.flush, a.positioned = l.layout.end(insert), l.layout.end(flush), true
	return nil
}

// incapable reports whether a server will never answer the question: it lacks a
// function, or the role may not call it.
func incapable(err error) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && refused(err) && (pe.Code[:min(2, len(pe.Code))] == "42" || pe.Code == "0A000")
}

// query runs one statement and returns its last row; NULL is "".
func (l *line) query(sql string, columns int) ([]string, error) {
	l.wire.SendQuery(&pgproto3.Query{String: sql})
	if err := l.wire.Flush(); err != nil {
		return nil, err
	}
	var row []string
	var failed error
	for {
		msg, err := l.wire.Receive()
		if err != nil {
			return nil, errors.Join(failed, err)
		}
		switch m := msg.(type) {
		case *pgproto3.DataRow:
			row = row[:0]
			for _, v := range m.Values {
				row = append(row, string(v))
			}
		case *pgproto3.ErrorResponse:
			failed = pgconn.ErrorResponseToPgError(m)
			if !refused(failed) {
				return nil, failed
			}
		case *pgproto3.ReadyForQuery:
			if failed == nil && len(row) != columns {
				failed = fmt.Errorf("a check got %d columns, want %d", len(row), columns)
			}
			return row, failed
		}
	}
}

// watch reads until the read deadline, which others may bring forward, and
// returns nil then. An error means that the server has ended the connection.
func (l *line) watch() error {
	for {
		msg, err := l.wire.Receive()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		if m, ok := msg.(*pgproto3.ErrorResponse); ok {
			return pgconn.ErrorResponseToPgError(m)
		}
	}
}

// close ends the connection.
func (l *line) close() {
	l.stop()
	_ = l.conn.SetDeadline(time.Now().Add(goodbye))
	l.wire.Send(&pgproto3.Terminate{})
	_ = l.wire.Flush()
	_ = l.conn.Close()
}
