package pgtest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Exec runs statements (simple protocol, several may be separated by
// semicolons) on the node as superuser, over a connection of its own.
func (n *Node) Exec(ctx context.Context, db, sql string) error {
	_, err := n.Query(ctx, db, sql)
	return err
}

// Query is Exec that returns the rows of the last result as text; NULL is "".
func (n *Node) Query(ctx context.Context, db, sql string) ([][]string, error) {
	conn, err := n.connect(ctx, db)
	if err != nil {
		return nil, err
	}
	defer closeConn(conn)
	return query(ctx, n.Name, conn, sql)
}

// Value is Query for one value: the first column of the first row.
func (n *Node) Value(ctx context.Context, db, sql string) (string, error) {
	rows, err := n.Query(ctx, db, sql)
	if err != nil {
		return "", err
	}
	if len(rows) == 0 || len(rows[0]) == 0 {
		return "", fmt.Errorf("%s: no row: %s", n.Name, sql)
	}
	return rows[0][0], nil
}

// Promote makes a standby a primary and returns when it takes writes. The other
// standbys go on following the old one until they are told otherwise (Follow).
func (n *Node) Promote(ctx context.Context) error {
	ok, err := n.Value(ctx, "postgres", "SELECT pg_promote(true, 60)")
	if err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	if ok != "t" {
		return fmt.Errorf("promote %s: it did not become a primary within 60 s", n.Name)
	}
	n.op.Lock()
	n.upstream = nil
	n.op.Unlock()
	return nil
}

// PauseReplay makes a standby keep what it receives without showing it, and
// returns when replay has stopped.
func (n *Node) PauseReplay(ctx context.Context) error {
	if err := n.Exec(ctx, "postgres", "SELECT pg_wal_replay_pause()"); err != nil {
		return fmt.Errorf("pause replay: %w", err)
	}
	return n.WaitFor(ctx, "postgres", "SELECT pg_get_wal_replay_pause_state() = 'paused'")
}

// ResumeReplay undoes PauseReplay.
func (n *Node) ResumeReplay(ctx context.Context) error {
	if err := n.Exec(ctx, "postgres", "SELECT pg_wal_replay_resume()"); err != nil {
		return fmt.Errorf("resume replay: %w", err)
	}
	return nil
}

// WaitCaughtUp waits until the standby streams and has replayed everything that
// its upstream had written when WaitCaughtUp was called.
func (n *Node) WaitCaughtUp(ctx context.Context) error {
	n.op.Lock()
	up := n.upstream
	n.op.Unlock()
	if up == nil {
		return fmt.Errorf("wait for %s: it is no standby", n.Name)
	}
	lsn, err := up.Value(ctx, "postgres",
		"SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END")
	if err != nil {
		return fmt.Errorf("wait for %s: %w", n.Name, err)
	}
	return n.WaitFor(ctx, "postgres", "SELECT pg_last_wal_replay_lsn() >= "+QuoteLiteral(lsn)+
		"::pg_lsn AND EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')")
}

// WaitFor asks a question on the node until its answer is true: sql gives one
// boolean. Errors end the wait, except those of a server that is starting or
// ending.
func (n *Node) WaitFor(ctx context.Context, db, sql string) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var conn *pgconn.PgConn
	defer func() {
		if conn != nil {
			closeConn(conn)
		}
	}()
	for {
		var rows [][]string
		var err error
		if conn == nil || conn.IsClosed() {
			conn, err = n.connect(ctx, db)
		}
		if err == nil {
			rows, err = query(ctx, n.Name, conn, sql)
		}
		if err == nil && len(rows) == 1 && len(rows[0]) == 1 && rows[0][0] == "t" {
			return nil
		}
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code != "57P03" && pg.Code != "57P01" {
			return err
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = context.Cause(ctx)
			}
			return fmt.Errorf("%s: waited in vain for %s: %w", n.Name, sql, err)
		case <-tick.C:
		}
	}
}

func (n *Node) connect(ctx context.Context, db string) (*pgconn.PgConn, error) {
	config, err := pgconn.ParseConfig(n.DSN(db, n.cluster.Superuser))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.Name, err)
	}
	config.RuntimeParams = map[string]string{"application_name": "pgtest"}
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.Name, err)
	}
	return conn, nil
}

func query(ctx context.Context, name string, conn *pgconn.PgConn, sql string) ([][]string, error) {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, sql)
	}
	if len(results) == 0 {
		return nil, nil
	}
	var rows [][]string
	for _, r := range results[len(results)-1].Rows {
		row := make([]string, len(r))
		for i, v := range r {
			row[i] = string(v)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// closeConn ends a connection politely, in a second at most.
func closeConn(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
