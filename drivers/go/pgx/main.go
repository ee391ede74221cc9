// Program pgx works with pgx and pgxpool, in each of pgx's query modes.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

func main() {
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		fmt.Println("MODE", mode)
		if err := session(context.Background(), mode); err != nil {
			fmt.Println("failed:", err)
		}
	}
	if err := pool(context.Background()); err != nil {
		fmt.Println("failed:", err)
	}
}

// code is the SQLSTATE of an error.
func code(err error) string {
	var e *pgconn.PgError
	switch {
	case err == nil:
		return "no error"
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline exceeded"
	}
	return err.Error()
}

func show(what string, args ...any) { fmt.Println(append([]any{what + ":"}, args...)...) }

func session(ctx context.Context, mode pgx.QueryExecMode) error {
	cfg, err := pgx.ParseConfig("")
	if err != nil {
		return err
	}
	cfg.DefaultQueryExecMode = mode
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	one := func(sql string, args ...any) any {
		var v any
		if err := conn.QueryRow(ctx, sql, args...).Scan(&v); err != nil {
			return code(err)
		}
		return v
	}
	exec := func(sql string, args ...any) string {
		tag, err := conn.Exec(ctx, sql, args...)
		if err != nil {
			return code(err)
		}
		return tag.String()
	}
	show("connect", one("SELECT current_user::text"))
	show("create", exec("DROP TABLE IF EXISTS pgx_items; CREATE TABLE pgx_items (id int PRIMARY KEY, name text)"))

	// Prepared and unprepared.
	for i := range 5 {
		exec("INSERT INTO pgx_items VALUES ($1, $2)", i, fmt.Sprint("name ", i))
	}
	rows, err := conn.Query(ctx, "SELECT name FROM pgx_items ORDER BY id")
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	show("names", names, code(err))
	if _, err := conn.Prepare(ctx, "by id", "SELECT name FROM pgx_items WHERE id = $1"); err != nil {
		return err
	}
	show("prepared", one("by id", 3), one("by id", 4))
	show("deallocate", code(conn.Deallocate(ctx, "by id")))
	show("unique", exec("INSERT INTO pgx_items VALUES ($1, $2)", 0, "twice"))
	show("syntax", exec("SELEC"))

	// Batches.
	var b pgx.Batch
	for i := range 5 {
		b.Queue("UPDATE pgx_items SET name = upper(name) WHERE id = $1 RETURNING name", i)
	}
	res := conn.SendBatch(ctx, &b)
	for range 5 {
		var name string
		err := res.QueryRow().Scan(&name)
		show("batch", name, code(err))
	}
	show("batch ends", code(res.Close()))
	b = pgx.Batch{}
	b.Queue("INSERT INTO pgx_items VALUES (100, 'x')")
	b.Queue("SELECT 1/0")
	b.Queue("INSERT INTO pgx_items VALUES (101, 'x')")
	show("batch error", code(conn.SendBatch(ctx, &b).Close()))
	show("after it", one("SELECT count(*) FROM pgx_items WHERE id >= 100"))

	// Transactions.
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO pgx_items VALUES (200, 'kept')"); err != nil {
			return err
		}
		inner := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO pgx_items VALUES (200, 'twice')")
			return err
		})
		show("savepoint", code(inner))
		return nil
	})
	show("transaction", code(err), one("SELECT count(*) FROM pgx_items WHERE id = 200"))

	// COPY.
	n, err := conn.CopyFrom(ctx, pgx.Identifier{"pgx_items"}, []string{"id", "name"}, pgx.CopyFromSlice(1000, func(i int) ([]any, error) {
		return []any{1000 + i, fmt.Sprint("copied ", i)}, nil
	}))
	show("copy in", n, code(err))
	var out bytes.Buffer
	_, err = conn.PgConn().CopyTo(ctx, &out, "COPY (SELECT * FROM pgx_items WHERE id > 1997 ORDER BY id) TO STDOUT")
	show("copy out", strings.ReplaceAll(out.String(), "\n", "|"), code(err))

	// Cursors.
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "DECLARE c CURSOR FOR SELECT id FROM pgx_items ORDER BY id DESC"); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, "FETCH 2 FROM c")
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int32])
		show("cursor", ids)
		return err
	})
	show("cursor ends", code(err))

	// Timeouts and cancel.
	show("set", exec("SET statement_timeout = '200ms'"))
	show("timeout", exec("SELECT pg_sleep(30)"))
	show("reset", exec("RESET statement_timeout"))
	stop := time.AfterFunc(300*time.Millisecond, func() { _ = conn.PgConn().CancelRequest(ctx) })
	show("cancel", exec("SELECT pg_sleep(30)"))
	stop.Stop()

	// Settings.
	exec("SET search_path = pg_catalog, public")
	show("setting", one("SELECT set_config('app.who', 'somebody', false)"), one("SELECT current_setting('search_path')"), one("SELECT current_setting('app.who')"))
	exec("RESET search_path")

	// LISTEN.
	exec("LISTEN pgx_news")
	other, err := pgx.Connect(ctx, "")
	if err != nil {
		return err
	}
	defer other.Close(ctx)
	_, _ = other.Exec(ctx, "NOTIFY pgx_news, 'one'")
	exec("NOTIFY pgx_news, 'own'")
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for range 2 {
		n, err := conn.WaitForNotification(wait)
		if err != nil {
			return err
		}
		show("notification", n.Channel, n.Payload, n.PID == conn.PgConn().PID())
	}
	exec("UNLISTEN *")

	// Advisory locks and temporary tables.
	show("lock", one("SELECT pg_try_advisory_lock(4248)"))
	var rival bool
	err = other.QueryRow(ctx, "SELECT pg_try_advisory_lock(4248)").Scan(&rival)
	show("rival", rival, code(err))
	show("unlock", one("SELECT pg_advisory_unlock(4248)"))
	exec("CREATE TEMP TABLE pgx_temp AS SELECT i FROM generate_series(1, 10) i")
	show("temporary", one("SELECT sum(i) FROM pgx_temp"))
	exec("DROP TABLE pgx_temp, pgx_items")

	// A context that ends closes the connection.
	short, cancelShort := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancelShort()
	_, err = other.Exec(short, "SELECT pg_sleep(30)")
	show("context", err != nil, other.IsClosed())
	return nil
}

// pool migrates a table while others use it.
func pool(ctx context.Context) error {
	cfg, err := pgxpool.ParseConfig("")
	if err != nil {
		return err
	}
	cfg.MaxConns = 6
	p, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer p.Close()
	if _, err := p.Exec(ctx, "DROP TABLE IF EXISTS pgx_load; CREATE TABLE pgx_load (id int PRIMARY KEY, n int); "+
		"INSERT INTO pgx_load SELECT i, 0 FROM generate_series(0, 7) i"); err != nil {
		return err
	}
	var mu sync.Mutex
	var failed []string
	var wg sync.WaitGroup
	for id := range 8 {
		wg.Go(func() {
			for range 40 {
				var n int
				_, err := p.Exec(ctx, "UPDATE pgx_load SET n = n + 1 WHERE id = $1", id)
				if err == nil {
					err = p.QueryRow(ctx, "SELECT n FROM pgx_load WHERE id = $1", id).Scan(&n)
				}
				if err != nil {
					mu.Lock()
					failed = append(failed, code(err))
					mu.Unlock()
				}
			}
		})
	}
	for i := range 5 {
		if _, err := p.Exec(ctx, fmt.Sprintf("ALTER TABLE pgx_load ADD COLUMN c%d int DEFAULT %d", i, i)); err != nil {
			return err
		}
	}
	wg.Wait()
	slices.Sort(failed)
	show("migration", slices.Compact(failed))
	rows, err := p.Query(ctx, "SELECT * FROM pgx_load ORDER BY id")
	if err != nil {
		return err
	}
	all, err := pgx.CollectRows(rows, pgx.RowToMap)
	show("after it", all, code(err))
	_, err = p.Exec(ctx, "DROP TABLE pgx_load")
	return err
}
