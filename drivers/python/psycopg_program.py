"""psycopg 3, with its pool and its automatic prepared statements."""

import threading

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

import load


def show(what, value):
    print(f"{what}: {value}", flush=True)


def error(conn, sql, *args):
    try:
        conn.execute(sql, *args)
    except psycopg.Error as e:
        return f"{type(e).__name__} {e.sqlstate}"
    return "no error"


with psycopg.connect(autocommit=True) as conn:
    show("connect", conn.execute("SELECT current_database(), current_user").fetchone())
    show("encoding", conn.info.encoding)
    conn.execute("DROP TABLE IF EXISTS psycopg_items, psycopg_load")
    conn.execute("CREATE TABLE psycopg_items (id int PRIMARY KEY, name text, data jsonb)")

    # Prepared and unprepared.
    for i in range(12):  # psycopg prepares at the fifth time
        conn.execute("INSERT INTO psycopg_items VALUES (%s, %s, %s)", (i, f"name {i}", '{"n": %d}' % i))
    show("rows", conn.execute("SELECT count(*), sum((data->>'n')::int) FROM psycopg_items").fetchone())
    show("prepared at once", conn.execute("SELECT name FROM psycopg_items WHERE id = %s", (3,), prepare=True).fetchone())
    show("binary", conn.execute("SELECT id, name FROM psycopg_items WHERE id = %b", (4,), binary=True).fetchone())
    with conn.cursor(row_factory=dict_row) as cur:
        show("dict", cur.execute("SELECT * FROM psycopg_items WHERE id = 5").fetchone())

    # Batches and pipelines.
    with conn.cursor() as cur:
        cur.executemany("UPDATE psycopg_items SET name = upper(name) WHERE id = %s RETURNING name", [(i,) for i in range(4)], returning=True)
        names = []
        while True:
            names.append(cur.fetchone()[0])
            if not cur.nextset():
                break
        show("executemany", names)
    with conn.pipeline():
        cursors = [conn.execute("SELECT %s::int * 2", (i,)) for i in range(5)]
        show("pipeline", [c.fetchone()[0] for c in cursors])
    try:
        with conn.pipeline() as p:
            conn.execute("INSERT INTO psycopg_items VALUES (100, 'x')")
            conn.execute("SELECT 1/0")
            conn.execute("INSERT INTO psycopg_items VALUES (101, 'x')")
            p.sync()
    except psycopg.Error as e:
        show("pipeline error", e.sqlstate)
    show("after it", conn.execute("SELECT count(*) FROM psycopg_items WHERE id >= 100").fetchone())

    # Transactions.
    with conn.transaction():
        conn.execute("INSERT INTO psycopg_items VALUES (200, 'kept')")
        try:
            with conn.transaction():
                conn.execute("INSERT INTO psycopg_items VALUES (201, 'not kept')")
                raise ValueError
        except ValueError:
            pass
    show("savepoint", conn.execute("SELECT array_agg(id) FROM psycopg_items WHERE id >= 200").fetchone())
    show("unique", error(conn, "INSERT INTO psycopg_items VALUES (200, 'twice')"))
    show("syntax", error(conn, "SELEC"))

    # COPY.
    with conn.cursor() as cur:
        with cur.copy("COPY psycopg_items (id, name) FROM STDIN") as copy:
            for i in range(1000, 2000):
                copy.write_row((i, f"copied {i}"))
        with cur.copy("COPY (SELECT id, name FROM psycopg_items WHERE id >= 1995 ORDER BY id) TO STDOUT") as copy:
            show("copy out", [row for row in copy.rows()])
    try:
        with conn.cursor() as cur, cur.copy("COPY psycopg_items (id, name) FROM STDIN") as copy:
            copy.write_row((1000, "twice"))
    except psycopg.Error as e:
        show("copy error", e.sqlstate)

    # Cursors.
    with conn.transaction(), conn.cursor("named") as cur:
        cur.execute("SELECT id FROM psycopg_items WHERE id >= 1000 ORDER BY id")
        first = cur.fetchmany(3)
        cur.scroll(500)
        show("named cursor", (first, cur.fetchone()))
    with conn.cursor("held", withhold=True) as cur:
        cur.execute("SELECT id FROM psycopg_items ORDER BY id DESC")
        conn.execute("SELECT 1")
        show("held cursor", cur.fetchmany(2))
    with conn.cursor() as cur:
        show("stream", sum(row[0] for row in cur.stream("SELECT i FROM generate_series(1, 1000) i")))

    # Cancel and timeouts.
    timer = threading.Timer(0.3, conn.cancel)
    timer.start()
    show("cancel", error(conn, "SELECT pg_sleep(30)"))
    timer.join()
    conn.execute("SET statement_timeout = '200ms'")
    show("timeout", error(conn, "SELECT pg_sleep(30)"))
    show("SHOW", conn.execute("SHOW statement_timeout").fetchone())
    conn.execute("RESET statement_timeout")

    # Settings.
    conn.execute("SET search_path = pg_catalog, public")
    conn.execute("SELECT set_config('app.who', 'somebody', false)")
    conn.execute("SET TIME ZONE 'Europe/Paris'")
    show("settings", conn.execute("SELECT current_setting('search_path'), current_setting('app.who'), timestamptz '2026-07-01 12:00Z'").fetchone())
    with conn.transaction():
        conn.execute("SET LOCAL app.who = 'another'")
        show("local", conn.execute("SHOW app.who").fetchone())
    show("after local", conn.execute("SHOW app.who").fetchone())

    conn.execute("RESET search_path")
    conn.execute("RESET TIME ZONE")

    # LISTEN.
    with psycopg.connect(autocommit=True) as listener:
        listener.execute("LISTEN psycopg_news")
        conn.execute("NOTIFY psycopg_news, 'one'")
        conn.execute("SELECT pg_notify('psycopg_news', 'two')")
        with conn.transaction():
            conn.execute("NOTIFY psycopg_news, 'three'")
        show("listen", [(n.channel, n.payload) for n in listener.notifies(timeout=10, stop_after=3)])
        listener.execute("UNLISTEN *")
    own = []
    conn.add_notify_handler(lambda n: own.append((n.payload, n.pid == conn.info.backend_pid)))
    conn.execute("LISTEN psycopg_news")
    conn.execute("NOTIFY psycopg_news, 'mine'")
    conn.execute("SELECT 1")
    show("own", own)
    conn.execute("UNLISTEN psycopg_news")

    # Advisory locks and temporary tables.
    with psycopg.connect(autocommit=True) as rival:
        show("lock", conn.execute("SELECT pg_try_advisory_lock(4242)").fetchone())
        show("rival", rival.execute("SELECT pg_try_advisory_lock(4242)").fetchone())
        show("unlock", conn.execute("SELECT pg_advisory_unlock(4242)").fetchone())
        show("rival", rival.execute("SELECT pg_try_advisory_lock(4242), pg_advisory_unlock(4242)").fetchone())
    conn.execute("CREATE TEMP TABLE psycopg_temp AS SELECT i FROM generate_series(1, 10) i")
    conn.execute("INSERT INTO psycopg_temp VALUES (100)")
    show("temporary", conn.execute("SELECT sum(i) FROM psycopg_temp").fetchone())
    conn.execute("DROP TABLE psycopg_temp")

    # Two-phase commit.
    with psycopg.connect() as two:
        two.tpc_begin(two.xid(1, "psycopg", "branch"))
        two.execute("INSERT INTO psycopg_items VALUES (300, 'two-phase')")
        two.tpc_prepare()
        two.tpc_commit()
    show("two-phase", conn.execute("SELECT name FROM psycopg_items WHERE id = 300").fetchone())

    # A migration while others work.
    conn.execute("CREATE TABLE psycopg_load (id int PRIMARY KEY, n int)")
    conn.execute("INSERT INTO psycopg_load SELECT i, 0 FROM generate_series(0, 3) i")
    with ConnectionPool(min_size=2, max_size=4, kwargs={"autocommit": True}) as pool:

        def work(thread, n):
            with pool.connection() as c:
                c.execute("UPDATE psycopg_load SET n = n + 1 WHERE id = %s", (thread,))
                c.execute("SELECT id, n FROM psycopg_load WHERE id = %s", (thread,), prepare=True).fetchone()

        def migrate():
            for i in range(5):
                conn.execute(f"ALTER TABLE psycopg_load ADD COLUMN c{i} int DEFAULT {i}")

        show("migration", load.run(work, migrate))
    show("after it", conn.execute("SELECT * FROM psycopg_load ORDER BY id").fetchall())
    conn.execute("DROP TABLE psycopg_items, psycopg_load")
show("closed", conn.closed)
