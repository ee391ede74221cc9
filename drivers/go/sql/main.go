// Program sql works with database/sql over lib/pq, and with its Listener.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
)

func show(what string, args ...any) { fmt.Println(append([]any{what + ":"}, args...)...) }

// code is the SQLSTATE of an error.
func code(err error) string {
	var e *pq.Error
	switch {
	case err == nil:
		return "no error"
	case errors.As(err, &e):
		return string(e.Code)
	}
	return err.Error()
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Println("failed:", err)
	}
}

func dsn(more string) string {
	env := func(name string) string { return "'" + strings.ReplaceAll(os.Getenv(name), "'", `\'`) + "'" }
	return fmt.Sprintf("host=%s port=%s user=%s password=%s dbname=%s sslmode=disable %s", env("PGHOST"), env("PGPORT"), env("PGUSER"),
		env("PGPASSWORD"), env("PGDATABASE"), more)
}

func run(ctx context.Context) error {
	for _, more := range []string{"", "binary_parameters=yes"} {
		show("MODE", more)
		db, err := sql.Open("postgres", dsn(more))
		if err != nil {
			return err
		}
		db.SetMaxOpenConns(5)
		if err := session(ctx, db); err != nil {
			return err
		}
		if err := load(db); err != nil {
			return err
		}
		if err := db.Close(); err != nil {
			return err
		}
	}
	return nil
}

func session(ctx context.Context, db *sql.DB) error {
	one := func(q interface {
		QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	}, query string, args ...any,
	) string {
		var v string
		if err := q.QueryRowContext(ctx, query, args...).Scan(&v); err != nil {
			return code(err)
		}
		return v
	}
	show("connect", one(db, "SELECT current_user"))
	if _, err := db.Exec("DROP TABLE IF EXISTS pq_items; CREATE TABLE pq_items (id int PRIMARY KEY, name text, data bytea)"); err != nil {
		return err
	}
	for i := range 10 {
		if _, err := db.Exec("INSERT INTO pq_items VALUES ($1, $2, $3)", i, fmt.Sprint("name ", i), []byte{0, byte(i)}); err != nil {
			return err
		}
	}

	// Prepared statements of a pool move between its connections.
	st, err := db.Prepare("SELECT name FROM pq_items WHERE id = $1")
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	got := make([]string, 10)
	for i := range got {
		wg.Go(func() {
			if err := st.QueryRow(i).Scan(&got[i]); err != nil {
				got[i] = code(err)
			}
		})
	}
	wg.Wait()
	show("prepared", got, code(st.Close()))
	show("bytes", one(db, "SELECT encode(data, 'hex') FROM pq_items WHERE id = $1", 7))
	_, err = db.Exec("INSERT INTO pq_items VALUES (0)")
	show("unique", code(err))
	_, err = db.Exec("SELEC")
	show("syntax", code(err))

	// Transactions.
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	_, err = tx.Exec("INSERT INTO pq_items VALUES (100, 'kept'); SAVEPOINT s")
	show("in a transaction", code(err))
	_, err = tx.Exec("INSERT INTO pq_items VALUES (100, 'twice')")
	show("unique", code(err))
	_, err = tx.Exec("ROLLBACK TO s")
	show("rollback", code(err), code(tx.Commit()))
	tx, err = db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return err
	}
	show("isolation", one(tx, "SHOW transaction_isolation"))
	_, err = tx.Exec("INSERT INTO pq_items VALUES (101)")
	show("read only", code(err), code(tx.Rollback()))

	// COPY and cursors.
	tx, err = db.Begin()
	if err != nil {
		return err
	}
	in, err := tx.Prepare(pq.CopyIn("pq_items", "id", "name"))
	if err != nil {
		return err
	}
	for i := range 1000 {
		if _, err := in.Exec(1000+i, fmt.Sprint("copied ", i)); err != nil {
			return err
		}
	}
	_, err = in.Exec()
	show("copy in", code(err), code(in.Close()))
	_, err = tx.Exec("DECLARE c CURSOR FOR SELECT id FROM pq_items ORDER BY id DESC")
	show("cursor", code(err), one(tx, "FETCH FROM c"), one(tx, "FETCH FROM c"), code(tx.Commit()))

	// One connection: timeouts, cancel, settings, locks, temporary tables.
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	exec := func(query string) string {
		_, err := conn.ExecContext(ctx, query)
		return code(err)
	}
	show("timeout", exec("SET statement_timeout = '200ms'"), exec("SELECT pg_sleep(30)"), exec("RESET statement_timeout"))
	show("settings", exec("SET search_path = pg_catalog, public; SET app.who = 'somebody'"), one(conn, "SHOW search_path"), one(conn, "SHOW app.who"))
	exec("RESET search_path")
	show("lock", one(conn, "SELECT pg_try_advisory_lock(4249)"), one(db, "SELECT pg_try_advisory_lock(4249)"), one(conn, "SELECT pg_advisory_unlock(4249)"))
	show("temporary", exec("CREATE TEMP TABLE pq_temp AS SELECT i FROM generate_series(1, 10) i"), one(conn, "SELECT sum(i) FROM pq_temp"), exec("DROP TABLE pq_temp"))
	short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	_, err = conn.ExecContext(short, "SELECT pg_sleep(30)")
	stop()
	show("cancel", err != nil)
	_ = conn.Close()
	show("after it", one(db, "SELECT 1"))

	// LISTEN.
	l := pq.NewListener(dsn(""), 100*time.Millisecond, time.Second, nil)
	for _, name := range []string{"pq_news", "Pq More"} {
		if err := l.Listen(name); err != nil {
			return err
		}
	}
	_, _ = db.Exec("NOTIFY pq_news, 'one'")
	_, _ = db.Exec(`NOTIFY "Pq More", 'two'`)
	for range 2 {
		select {
		case n := <-l.Notify:
			show("notification", n.Channel, n.Extra)
		case <-time.After(10 * time.Second):
			show("notification", "none in 10 s")
		}
	}
	show("ping", code(l.Ping()), code(l.Unlisten("pq_news")), code(l.Close()))
	_, err = db.Exec("DROP TABLE pq_items")
	return err
}

// load migrates a table while others use it.
func load(db *sql.DB) error {
	if _, err := db.Exec("DROP TABLE IF EXISTS pq_load; CREATE TABLE pq_load (id int PRIMARY KEY, n int); " +
		"INSERT INTO pq_load SELECT i, 0 FROM generate_series(0, 5) i"); err != nil {
		return err
	}
	st, err := db.Prepare("UPDATE pq_load SET n = n + 1 WHERE id = $1")
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var failed []string
	var wg sync.WaitGroup
	for id := range 6 {
		wg.Go(func() {
			for range 40 {
				var n int
				_, err := st.Exec(id)
				if err == nil {
					err = db.QueryRow("SELECT n FROM pq_load WHERE id = $1", id).Scan(&n)
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
		if _, err := db.Exec(fmt.Sprintf("ALTER TABLE pq_load ADD COLUMN c%d int DEFAULT %d", i, i)); err != nil {
			return err
		}
	}
	wg.Wait()
	slices.Sort(failed)
	show("migration", slices.Compact(failed))
	var sum, columns int
	err = db.QueryRow("SELECT sum(n), sum(c4) FROM pq_load").Scan(&sum, &columns)
	show("after it", sum, columns, code(err))
	_, err = db.Exec("DROP TABLE pq_load")
	return err
}
