package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"pgproxy/pgtest"
)

// atOnce bounds the logins that are under way at one time, below the backlog of
// every listener.
const atOnce = 32

// Bounds of the idle workload.
const (
	idleTimeout   = 3 * time.Minute
	steadyEvery   = 500 * time.Millisecond
	steadyTimeout = 10 * time.Second
)

// idle measures the memory that idle clients cost each proxy. Its error is one
// that ends the run: ctx has ended.
func (b *bench) idle(ctx context.Context) error {
	for _, p := range b.peers {
		if p.path == "" {
			continue
		}
		b.logf("%d idle clients: %s", b.opt.Idle, p.name)
		row := &IdleRow{Peer: p.name, Clients: b.opt.Idle}
		err := b.idlePeer(ctx, p, row)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			row.Error = err.Error()
			b.logf("  %s: %v", p.name, err)
		}
		b.result.Idle = append(b.result.Idle, row)
	}
	return nil
}

func (b *bench) idlePeer(ctx context.Context, p *peer, row *IdleRow) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, idleTimeout, fmt.Errorf("it took more than %s", idleTimeout))
	defer cancel()
	i, err := b.startPeer(ctx, p, b.opt.largestPool())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, i.stop()) }()
	if err := b.warmUp(ctx, i, Workload{Script: "select", Mode: "simple", Clients: 16}); err != nil {
		return err
	}
	before, err := i.steadyMemory(ctx)
	if err != nil {
		return err
	}
	crowd, err := i.openClients(ctx, row.Clients)
	defer closeClients(crowd)
	if err != nil {
		return errors.Join(err, i.died())
	}
	after, err := i.steadyMemory(ctx)
	if err != nil {
		return err
	}
	if err := useClients(ctx, crowd); err != nil {
		return errors.Join(err, i.died())
	}
	used, err := i.steadyMemory(ctx)
	if err != nil {
		return err
	}
	n := float64(row.Clients)
	row.BeforeBytes = before
	row.LoginBytes = float64(after-before) / n
	row.UsedBytes = float64(used-before) / n
	b.logf("  %s: %.0f bytes for each client, %.0f after a statement of each", p.name, row.LoginBytes, row.UsedBytes)
	return nil
}

// openClients opens connections that log in and do nothing. With an error it
// returns those that are open all the same.
func (i *instance) openClients(ctx context.Context, n int) ([]*pgconn.PgConn, error) {
	crowd := make([]*pgconn.PgConn, n)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for k := range crowd {
		g.Go(func() error {
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			conn, err := i.connect(gctx)
			if err != nil {
				return fmt.Errorf("client %d: %w", k+1, err)
			}
			crowd[k] = conn
			return nil
		})
	}
	return crowd, g.Wait()
}

// useClients runs one statement on each connection.
func useClients(ctx context.Context, crowd []*pgconn.PgConn) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for k, conn := range crowd {
		g.Go(func() error {
			if _, err := conn.Exec(gctx, "select 1").ReadAll(); err != nil {
				return fmt.Errorf("client %d: %w", k+1, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func closeClients(crowd []*pgconn.PgConn) {
	for _, conn := range crowd {
		if conn != nil {
			_ = conn.Conn().Close()
		}
	}
}

// steadyMemory is the resident memory of the peer's process once it changes by
// less than 1 % in half a second, or after 10 s.
func (i *instance) steadyMemory(ctx context.Context) (int64, error) {
	ticker := time.NewTicker(steadyEvery)
	defer ticker.Stop()
	last := int64(0)
	for range int(steadyTimeout / steadyEvery) {
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-ticker.C:
		}
		now, err := pgtest.ResidentMemory(i.proc.PID())
		if err != nil {
			return 0, errors.Join(err, i.died())
		}
		if diff := now - last; diff < now/100 && -diff < now/100 {
			return now, nil
		}
		last = now
	}
	return last, nil
}
