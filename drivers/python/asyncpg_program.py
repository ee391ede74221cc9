"""asyncpg, with its pool and its cache of prepared statements."""

import asyncio

import asyncpg


def show(what, value):
    print(f"{what}: {value}", flush=True)


async def error(awaitable):
    try:
        await awaitable
    except asyncpg.PostgresError as e:
        return f"{type(e).__name__} {e.sqlstate}"
    except asyncio.TimeoutError:
        return "TimeoutError"
    return "no error"


async def main():
    conn = await asyncpg.connect()
    show("connect", tuple(await conn.fetchrow("SELECT current_database(), current_user")))
    await conn.execute("DROP TABLE IF EXISTS asyncpg_items, asyncpg_load")
    await conn.execute("CREATE TABLE asyncpg_items (id int PRIMARY KEY, name text, tags text[])")

    # Prepared and unprepared.
    for i in range(10):
        await conn.execute("INSERT INTO asyncpg_items VALUES ($1, $2, $3)", i, f"name {i}", [str(i), "tag"])
    show("row", dict(await conn.fetchrow("SELECT * FROM asyncpg_items WHERE id = $1", 3)))
    st = await conn.prepare("SELECT name FROM asyncpg_items WHERE id = $1")
    show("prepared", [await st.fetchval(i) for i in range(3)])
    show("attributes", [(a.name, a.type.name) for a in st.get_attributes()])
    show("explain", (await st.explain(1))[0]["Plan"]["Node Type"])
    show("script", await conn.execute("SELECT 1; SELECT 2; UPDATE asyncpg_items SET name = name"))

    # Batches.
    await conn.executemany("INSERT INTO asyncpg_items VALUES ($1, $2)", [(i, "many") for i in range(100, 300)])
    show("executemany", await conn.fetchval("SELECT count(*) FROM asyncpg_items"))
    show("executemany error", await error(conn.executemany("INSERT INTO asyncpg_items VALUES ($1, $2)", [(900, "x"), (0, "x"), (901, "x")])))
    show("after it", await conn.fetchval("SELECT count(*) FROM asyncpg_items WHERE id >= 900"))
    rows = await conn.fetchmany("INSERT INTO asyncpg_items VALUES ($1, $2) RETURNING id", [(i, "back") for i in range(500, 503)])
    show("fetchmany", [r["id"] for r in rows])

    # Transactions.
    async with conn.transaction():
        await conn.execute("INSERT INTO asyncpg_items VALUES (600, 'kept')")
        try:
            async with conn.transaction():
                await conn.execute("INSERT INTO asyncpg_items VALUES (601, 'not kept')")
                raise ValueError
        except ValueError:
            pass
    show("savepoint", [r["id"] for r in await conn.fetch("SELECT id FROM asyncpg_items WHERE id >= 600 ORDER BY id")])
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        show("read only", await error(conn.execute("INSERT INTO asyncpg_items VALUES (602)")))
    show("unique", await error(conn.execute("INSERT INTO asyncpg_items VALUES (0)")))

    # COPY.
    await conn.copy_records_to_table("asyncpg_items", records=[(i, f"copied {i}", None) for i in range(1000, 2000)])
    out = bytearray()

    async def take(data):
        out.extend(data)

    await conn.copy_from_query("SELECT id, name FROM asyncpg_items WHERE id > $1 ORDER BY id", 1997, output=take)
    show("copy out", bytes(out))
    show("copy error", await error(conn.copy_records_to_table("asyncpg_items", records=[(1000, "twice", None)])))

    # Cursors.
    async with conn.transaction():
        seen = 0
        async for row in conn.cursor("SELECT id FROM asyncpg_items WHERE id >= 1000 ORDER BY id", prefetch=100):
            seen += row["id"]
        cur = await conn.cursor("SELECT id FROM asyncpg_items ORDER BY id DESC")
        await cur.forward(10)
        show("cursor", (seen, [r["id"] for r in await cur.fetch(2)]))

    # Cancel and timeouts.
    show("timeout", await error(conn.fetch("SELECT pg_sleep(30)", timeout=0.3)))
    show("after it", await conn.fetchval("SELECT 1"))
    task = asyncio.ensure_future(conn.fetch("SELECT pg_sleep(30)"))
    await asyncio.sleep(0.3)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        show("cancel", "cancelled")
    show("after it", await conn.fetchval("SELECT 2"))
    await conn.execute("SET statement_timeout = '200ms'")
    show("statement_timeout", await error(conn.fetch("SELECT pg_sleep(30)")))
    await conn.execute("RESET statement_timeout")

    # Settings.
    await conn.execute("SET search_path = pg_catalog, public")
    await conn.execute("SELECT set_config('app.who', $1, false)", "somebody")
    await conn.execute("SET TIME ZONE 'Europe/Paris'")
    show("settings", tuple(await conn.fetchrow("SELECT current_setting('search_path'), current_setting('app.who'), (timestamptz '2026-07-01 12:00Z')::text")))
    show("reported", conn.get_settings().TimeZone)
    await conn.reset()
    show("reset", await conn.fetchval("SELECT coalesce(current_setting('app.who', true), '')"))

    # LISTEN.
    heard = asyncio.Queue()
    listener = await asyncpg.connect()

    def hear(c, pid, channel, payload):
        heard.put_nowait((channel, payload))

    await listener.add_listener("asyncpg_news", hear)
    await conn.execute("NOTIFY asyncpg_news, 'one'")
    await conn.execute("SELECT pg_notify($1, $2)", "asyncpg_news", "two")
    await listener.execute("SELECT pg_notify('asyncpg_news', 'three')")
    show("listen", [await asyncio.wait_for(heard.get(), 10) for _ in range(3)])
    await listener.remove_listener("asyncpg_news", hear)
    await listener.close()

    # Advisory locks and temporary tables.
    rival = await asyncpg.connect()
    show("lock", await conn.fetchval("SELECT pg_try_advisory_lock(4243)"))
    show("rival", await rival.fetchval("SELECT pg_try_advisory_lock(4243)"))
    show("unlock", await conn.fetchval("SELECT pg_advisory_unlock(4243)"))
    show("rival", tuple(await rival.fetchrow("SELECT pg_try_advisory_lock(4243), pg_advisory_unlock(4243)")))
    await rival.close()
    await conn.execute("CREATE TEMP TABLE asyncpg_temp (i int)")
    await conn.copy_records_to_table("asyncpg_temp", records=[(i,) for i in range(10)])
    show("temporary", await conn.fetchval("SELECT sum(i) FROM asyncpg_temp"))
    await conn.execute("DROP TABLE asyncpg_temp")

    # Types that need a look into the catalog.
    await conn.execute("DROP TYPE IF EXISTS asyncpg_mood")
    await conn.execute("CREATE TYPE asyncpg_mood AS ENUM ('sad', 'happy')")
    show("enum", await conn.fetchval("SELECT $1::asyncpg_mood", "happy"))
    await conn.set_type_codec("json", encoder=str, decoder=lambda s: ("json", s), schema="pg_catalog")
    show("codec", await conn.fetchval("SELECT '[1]'::json"))
    await conn.execute("DROP TYPE asyncpg_mood")

    # A migration while others work.
    await conn.execute("CREATE TABLE asyncpg_load (id int PRIMARY KEY, n int)")
    await conn.execute("INSERT INTO asyncpg_load SELECT i, 0 FROM generate_series(0, 5) i")
    errors = set()
    async with asyncpg.create_pool(min_size=2, max_size=6) as pool:

        async def work(i):
            for _ in range(40):
                try:
                    async with pool.acquire() as c:
                        await c.execute("UPDATE asyncpg_load SET n = n + 1 WHERE id = $1", i)
                        await c.fetchrow("SELECT id, n FROM asyncpg_load WHERE id = $1", i)
                except Exception as e:
                    errors.add(f"{type(e).__name__}: {e}")

        async def migrate():
            for i in range(5):
                await conn.execute(f"ALTER TABLE asyncpg_load ADD COLUMN c{i} int DEFAULT {i}")

        await asyncio.gather(migrate(), *[work(i) for i in range(6)])
    show("migration", sorted(errors))
    show("after it", [tuple(r) for r in await conn.fetch("SELECT * FROM asyncpg_load ORDER BY id")])
    await conn.execute("DROP TABLE asyncpg_items, asyncpg_load")
    await conn.close()


asyncio.run(main())
