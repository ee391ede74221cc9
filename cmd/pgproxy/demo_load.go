package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// demoPause is how long a client of the workload thinks between transactions:
// the demo is to leave a small machine its air.
const demoPause = 20 * time.Millisecond

// demoLoad is the demo's own workload: reads, and transfers between accounts.
type demoLoad struct {
	wg sync.WaitGroup

	// Atomic, for the screen.
	reads, writes, errors atomic.Uint64
	lastError             atomic.Pointer[string]
}

// startDemoLoad starts clients that work until ctx ends. wait returns when they
// have ended.
func startDemoLoad(ctx context.Context, dsn string, clients int) *demoLoad {
	l := &demoLoad{}
	for range clients {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				if err := l.client(ctx, dsn); err != nil && ctx.Err() == nil {
					l.errors.Add(1)
					text := err.Error()
					l.lastError.Store(&text)
					pauseFor(ctx, time.Second)
				}
			}
		})
	}
	return l
}

func (l *demoLoad) wait() { l.wg.Wait() }

// client is one connection, until its first error.
func (l *demoLoad) client(ctx context.Context, dsn string) error {
	c, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	for ctx.Err() == nil {
		if rand.IntN(20) > 0 { // a session reads from the primary for a moment after each write
			var balance int64
			if err := c.QueryRow(ctx, "SELECT balance FROM accounts WHERE id = $1", account()).Scan(&balance); err != nil {
				return err
			}
			l.reads.Add(1)
		} else {
			if err := transfer(ctx, c, account(), account(), 1+rand.Int64N(10)); err != nil {
				return err
			}
			l.writes.Add(1)
		}
		pauseFor(ctx, demoPause/2+rand.N(demoPause))
	}
	return nil
}

func account() int { return 1 + rand.IntN(10_000) }

// transfer moves an amount in one transaction. Accounts are locked in order of
// their numbers, so that no deadlock can form.
func transfer(ctx context.Context, c *pgx.Conn, from, to int, amount int64) error {
	if from == to {
		return nil
	}
	tx, err := c.Begin(ctx)
	if err != nil {
		return err
	}
	const move = "UPDATE accounts SET balance = balance + $2 WHERE id = $1"
	first, second, sign := from, to, int64(-1)
	if first > second {
		first, second, sign = second, first, 1
	}
	_, err = tx.Exec(ctx, move, first, sign*amount)
	if err == nil {
		_, err = tx.Exec(ctx, move, second, -sign*amount)
	}
	if err == nil {
		_, err = tx.Exec(ctx, "INSERT INTO transfers (source, target, amount) VALUES ($1, $2, $3)", from, to, amount)
	}
	if err != nil {
		return errors.Join(err, tx.Rollback(context.WithoutCancel(ctx)))
	}
	return tx.Commit(ctx)
}

// pauseFor waits for d, or until ctx ends.
func pauseFor(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
