//! sqlx: its pool, its cache of prepared statements, its migrations and its listener.

use futures::TryStreamExt;
use sqlx::{
    postgres::{PgConnectOptions, PgListener, PgPool, PgPoolCopyExt, PgPoolOptions},
    Connection, Executor, Row,
};
use std::{collections::BTreeSet, env, fmt::Debug, time::Duration};
use tokio::time::timeout;

fn show(what: &str, value: impl Debug) {
    println!("{what}: {value:?}");
}

fn code<T>(result: Result<T, sqlx::Error>) -> String {
    match result {
        Ok(_) => "no error".into(),
        Err(sqlx::Error::Database(e)) => e.code().map_or_else(|| e.to_string(), |c| c.to_string()),
        Err(e) => e.to_string(),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let var = |name: &str| env::var(name).unwrap();
    let options = PgConnectOptions::new_without_pgpass()
        .host(&var("PGHOST"))
        .port(var("PGPORT").parse()?)
        .username(&var("PGUSER"))
        .password(&var("PGPASSWORD"))
        .database(&var("PGDATABASE"))
        .application_name("sqlx program")
        .options([("app.tenant", "everybody")]);
    let pool = PgPoolOptions::new().max_connections(5).connect_with(options.clone()).await?;
    show("connect", sqlx::query_scalar::<_, String>("SELECT current_user::text").fetch_one(&pool).await?);
    show("tenant", sqlx::query_scalar::<_, String>("SELECT current_setting('app.tenant')").fetch_one(&pool).await?);

    // Migrations take an advisory lock; the load works on what the first one has made.
    pool.execute("DROP TABLE IF EXISTS sqlx_pet, sqlx_owner, sqlx_load, _sqlx_migrations").await?;
    pool.execute("CREATE TABLE sqlx_load (id int PRIMARY KEY, n int); INSERT INTO sqlx_load SELECT i, 0 FROM generate_series(0, 5) i").await?;
    let workers: Vec<_> = (0..6).map(|id| tokio::spawn(work(pool.clone(), id))).collect();
    let migrator = sqlx::migrate::Migrator::new(std::path::Path::new("./migrations")).await?;
    migrator.run(&pool).await?;
    migrator.run(&pool).await?;
    let mut errors = BTreeSet::new();
    for w in workers {
        errors.append(&mut w.await?);
    }
    show("migration", errors);
    show("versions", sqlx::query_scalar::<_, i64>("SELECT version FROM _sqlx_migrations ORDER BY 1").fetch_all(&pool).await?);
    let row = sqlx::query("SELECT sum(n), sum(more) FROM sqlx_load").fetch_one(&pool).await?;
    show("after it", (row.get::<i64, _>(0), row.get::<i64, _>(1)));

    // Prepared, unprepared and several.
    for i in 0..10 {
        sqlx::query("INSERT INTO sqlx_owner (name) VALUES ($1)").bind(format!("owner {i}")).execute(&pool).await?;
    }
    show("rows", sqlx::query_scalar::<_, String>("SELECT name FROM sqlx_owner WHERE id > $1 ORDER BY id").bind(7).fetch_all(&pool).await?);
    show("not kept", sqlx::query_scalar::<_, i64>("SELECT count(*) FROM sqlx_owner").persistent(false).fetch_one(&pool).await?);
    show("several", sqlx::raw_sql("SELECT 1; SELECT 2").fetch_all(&pool).await?.len());
    show("unique", code(sqlx::query("INSERT INTO sqlx_owner (name) VALUES ('owner 1')").execute(&pool).await));
    show("syntax", code(sqlx::query("SELEC").execute(&pool).await));
    show("describe", pool.describe("SELECT id, name FROM sqlx_owner").await?.columns().len());

    // Transactions, which nest.
    let mut tx = pool.begin().await?;
    sqlx::query("INSERT INTO sqlx_owner (name) VALUES ('kept')").execute(&mut *tx).await?;
    let mut inner = tx.begin().await?;
    show("savepoint", code(sqlx::query("INSERT INTO sqlx_owner (name) VALUES ('kept')").execute(&mut *inner).await));
    inner.rollback().await?;
    tx.commit().await?;
    {
        let mut tx = pool.begin().await?;
        sqlx::query("INSERT INTO sqlx_owner (name) VALUES ('dropped')").execute(&mut *tx).await?;
    } // dropped: rolled back
    show("kept", sqlx::query_scalar::<_, i64>("SELECT count(*) FROM sqlx_owner WHERE name IN ('kept', 'dropped')").fetch_one(&pool).await?);

    // COPY and streams.
    let mut copy = pool.copy_in_raw("COPY sqlx_pet (name, owner_id) FROM STDIN").await?;
    let text: String = (0..1000).map(|i| format!("pet {i}\t1\n")).collect();
    copy.send(text.as_bytes()).await?;
    show("copy in", copy.finish().await?);
    let mut out = pool.copy_out_raw("COPY (SELECT name FROM sqlx_pet ORDER BY id LIMIT 2) TO STDOUT").await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = out.try_next().await? {
        bytes.extend_from_slice(&chunk);
    }
    drop(out);
    show("copy out", String::from_utf8(bytes)?);
    let mut rows = sqlx::query("SELECT id FROM sqlx_pet").fetch(&pool);
    let mut seen = 0;
    while rows.try_next().await?.is_some() {
        seen += 1;
    }
    drop(rows);
    show("stream", seen);

    // One connection: timeouts, settings, cursors, locks, temporary tables.
    let mut c = pool.acquire().await?;
    c.execute("SET statement_timeout = '200ms'").await?;
    show("timeout", code(sqlx::query("SELECT pg_sleep(30)").execute(&mut *c).await));
    c.execute("RESET statement_timeout").await?;
    c.execute("SET app.who = 'somebody'").await?;
    show("setting", sqlx::query_scalar::<_, String>("SHOW app.who").fetch_one(&mut *c).await?);
    c.execute("BEGIN; DECLARE held CURSOR WITH HOLD FOR SELECT id FROM sqlx_pet ORDER BY id; COMMIT").await?;
    show("cursor", c.fetch_all("FETCH 3 FROM held").await?.len());
    c.execute("CLOSE held").await?;
    let lock = "SELECT pg_try_advisory_lock(4251)";
    show("lock", sqlx::query_scalar::<_, bool>(lock).fetch_one(&mut *c).await?);
    show("rival", sqlx::query_scalar::<_, bool>(lock).fetch_one(&pool).await?);
    show("unlock", sqlx::query_scalar::<_, bool>("SELECT pg_advisory_unlock(4251)").fetch_one(&mut *c).await?);
    c.execute("CREATE TEMP TABLE sqlx_temp AS SELECT i FROM generate_series(1, 10) i").await?;
    show("temporary", sqlx::query_scalar::<_, i64>("SELECT sum(i) FROM sqlx_temp").fetch_one(&mut *c).await?);
    c.execute("DROP TABLE sqlx_temp").await?;
    drop(c);

    // LISTEN.
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen_all(["sqlx_news", "Sqlx More"]).await?;
    sqlx::query("SELECT pg_notify($1, $2)").bind("sqlx_news").bind("one").execute(&pool).await?;
    pool.execute("NOTIFY \"Sqlx More\", 'two'").await?;
    for _ in 0..2 {
        let n = timeout(Duration::from_secs(10), listener.recv()).await??;
        show("notification", (n.channel().to_string(), n.payload().to_string()));
    }
    listener.unlisten_all().await?;
    drop(listener);

    pool.execute("DROP TABLE sqlx_pet, sqlx_owner, sqlx_load, _sqlx_migrations").await?;
    pool.close().await;
    Ok(())
}

/// Works on one row.
async fn work(pool: PgPool, id: i32) -> BTreeSet<String> {
    let mut errors = BTreeSet::new();
    for _ in 0..40 {
        for sql in ["UPDATE sqlx_load SET n = n + 1 WHERE id = $1", "SELECT id, n FROM sqlx_load WHERE id = $1"] {
            if let Err(e) = sqlx::query(sql).bind(id).fetch_all(&pool).await {
                errors.insert(e.to_string());
            }
        }
    }
    errors
}
