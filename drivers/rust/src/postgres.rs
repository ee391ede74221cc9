//! tokio-postgres: pipelined prepared statements, transactions, COPY, portals, LISTEN and cancel.

use bytes::Bytes;
use futures::{channel::mpsc, future::join_all, pin_mut, stream, SinkExt, StreamExt, TryStreamExt};
use std::{collections::BTreeSet, env, fmt::Debug, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_postgres::{AsyncMessage, Client, Config, Error, IsolationLevel, NoTls, SimpleQueryMessage};

fn show(what: &str, value: impl Debug) {
    println!("{what}: {value:?}");
}

fn code<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "no error".into(),
        Err(e) => e.code().map_or_else(|| e.to_string(), |c| c.code().into()),
    }
}

fn config() -> Config {
    let var = |name: &str| env::var(name).unwrap();
    let mut c = Config::new();
    c.host(var("PGHOST")).port(var("PGPORT").parse().unwrap()).user(var("PGUSER")).password(var("PGPASSWORD")).dbname(var("PGDATABASE"));
    c
}

/// Connects; what comes unasked goes to the receiver.
async fn connect() -> Result<(Client, mpsc::UnboundedReceiver<AsyncMessage>), Error> {
    let (client, mut connection) = config().connect(NoTls).await?;
    let (tx, rx) = mpsc::unbounded();
    let messages = stream::poll_fn(move |cx| connection.poll_message(cx));
    tokio::spawn(async move {
        pin_mut!(messages);
        while let Some(Ok(m)) = messages.next().await {
            if tx.unbounded_send(m).is_err() {
                break;
            }
        }
    });
    Ok((client, rx))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (mut c, mut unasked) = connect().await?;
    show("connect", c.query_one("SELECT current_user::text", &[]).await?.get::<_, String>(0));
    c.batch_execute("DROP TABLE IF EXISTS rust_items, rust_load; CREATE TABLE rust_items (id int PRIMARY KEY, name text)").await?;

    // Prepared, unprepared and pipelined.
    let insert = c.prepare("INSERT INTO rust_items VALUES ($1, $2)").await?;
    let values: Vec<(i32, String)> = (0..20).map(|i| (i, format!("name {i}"))).collect();
    let done = join_all(values.iter().map(|(i, n)| async { c.execute(&insert, &[i, n]).await })).await;
    show("pipeline", done.into_iter().map(|r| r.unwrap()).sum::<u64>());
    show("row", c.query_one("SELECT name FROM rust_items WHERE id = $1", &[&3]).await?.get::<_, String>(0));
    let numbers: Vec<i32> = (0..10).collect();
    let doubled = join_all(numbers.iter().map(|i| async { c.query_one("SELECT $1::int * 2", &[i]).await.unwrap().get::<_, i32>(0) })).await;
    show("pipeline of parses", doubled);
    let mut simple = Vec::new();
    for m in c.simple_query("SELECT 1 AS a; SELECT 2 AS b; UPDATE rust_items SET name = name").await? {
        match m {
            SimpleQueryMessage::Row(r) => simple.push(r.get(0).unwrap().to_string()),
            SimpleQueryMessage::CommandComplete(n) => simple.push(format!("complete {n}")),
            _ => {}
        }
    }
    show("simple", simple);
    show("unique", code(c.execute(&insert, &[&0, &"twice"]).await));
    show("syntax", code(c.batch_execute("SELEC").await));

    // Transactions.
    {
        let mut tx = c.transaction().await?;
        tx.execute("INSERT INTO rust_items VALUES (100, 'kept')", &[]).await?;
        let sp = tx.savepoint("s").await?;
        show("savepoint", code(sp.execute("INSERT INTO rust_items VALUES (100, 'twice')", &[]).await));
        sp.rollback().await?;
        tx.commit().await?;
    }
    show("kept", c.query_one("SELECT count(*) FROM rust_items WHERE id = 100", &[]).await?.get::<_, i64>(0));
    {
        let tx = c.build_transaction().isolation_level(IsolationLevel::Serializable).read_only(true).start().await?;
        show("isolation", tx.query_one("SHOW transaction_isolation", &[]).await?.get::<_, String>(0));
        show("read only", code(tx.batch_execute("INSERT INTO rust_items VALUES (101)").await));
    } // dropped: rolled back

    // COPY.
    {
        let sink = c.copy_in("COPY rust_items FROM STDIN").await?;
        pin_mut!(sink);
        for i in 1000..2000 {
            sink.send(Bytes::from(format!("{i}\tcopied {i}\n"))).await?;
        }
        show("copy in", sink.finish().await?);
    }
    let out: Vec<Bytes> = c.copy_out("COPY (SELECT * FROM rust_items WHERE id > 1997 ORDER BY id) TO STDOUT").await?.try_collect().await?;
    show("copy out", out.concat().escape_ascii().to_string());
    {
        let sink = c.copy_in("COPY rust_items FROM STDIN").await?;
        pin_mut!(sink);
        sink.send(Bytes::from("1000\ttwice\n")).await?;
        show("copy error", code(sink.finish().await));
    }

    // Portals: rows come in portions.
    {
        let tx = c.transaction().await?;
        let portal = tx.bind("SELECT id FROM rust_items WHERE id >= $1 ORDER BY id", &[&1000]).await?;
        let mut seen = Vec::new();
        loop {
            let rows = tx.query_portal(&portal, 300).await?;
            if rows.is_empty() {
                break;
            }
            seen.push((rows.len(), rows[0].get::<_, i32>(0)));
        }
        show("portal", seen);
        tx.commit().await?;
    }

    // Cancel and timeouts.
    let token = c.cancel_token();
    tokio::spawn(async move {
        sleep(Duration::from_millis(300)).await;
        let _ = token.cancel_query(NoTls).await;
    });
    show("cancel", code(c.batch_execute("SELECT pg_sleep(30)").await));
    c.batch_execute("SET statement_timeout = '200ms'").await?;
    show("timeout", code(c.batch_execute("SELECT pg_sleep(30)").await));
    c.batch_execute("RESET statement_timeout").await?;

    // Settings.
    c.batch_execute("SET search_path = pg_catalog, public; SET app.who = 'somebody'").await?;
    show("settings", (c.query_one("SHOW search_path", &[]).await?.get::<_, String>(0), c.query_one("SHOW app.who", &[]).await?.get::<_, String>(0)));
    c.batch_execute("RESET search_path").await?;

    // LISTEN.
    let (other, _rx) = connect().await?;
    c.batch_execute("LISTEN rust_news").await?;
    c.execute("LISTEN \"Rust More\"", &[]).await?; // by the extended protocol
    other.batch_execute("NOTIFY rust_news, 'one'").await?;
    other.execute("SELECT pg_notify($1, $2)", &[&"Rust More", &"two"]).await?;
    let mut heard = Vec::new();
    while heard.len() < 2 {
        match timeout(Duration::from_secs(10), unasked.next()).await {
            Ok(Some(AsyncMessage::Notification(n))) => heard.push((n.channel().to_string(), n.payload().to_string())),
            Ok(Some(_)) => {}
            _ => break,
        }
    }
    show("listen", heard);
    c.batch_execute("UNLISTEN *").await?;

    // Advisory locks and temporary tables.
    let lock = "SELECT pg_try_advisory_lock(4250)";
    show("lock", (c.query_one(lock, &[]).await?.get::<_, bool>(0), other.query_one(lock, &[]).await?.get::<_, bool>(0)));
    show("unlock", c.query_one("SELECT pg_advisory_unlock(4250)", &[]).await?.get::<_, bool>(0));
    c.batch_execute("CREATE TEMP TABLE rust_temp AS SELECT i FROM generate_series(1, 10) i").await?;
    show("temporary", c.query_one("SELECT sum(i) FROM rust_temp", &[]).await?.get::<_, i64>(0));
    c.batch_execute("DROP TABLE rust_temp").await?;

    // A migration while others work.
    c.batch_execute("CREATE TABLE rust_load (id int PRIMARY KEY, n int); INSERT INTO rust_load SELECT i, 0 FROM generate_series(0, 5) i").await?;
    let workers: Vec<_> = (0..6).map(|id: i32| tokio::spawn(work(id))).collect();
    for i in 0..5 {
        c.batch_execute(&format!("ALTER TABLE rust_load ADD COLUMN c{i} int DEFAULT {i}")).await?;
    }
    let mut errors = BTreeSet::new();
    for w in workers {
        errors.append(&mut w.await.unwrap());
    }
    show("migration", errors);
    let row = c.query_one("SELECT sum(n), sum(c4) FROM rust_load", &[]).await?;
    show("after it", (row.get::<_, i64>(0), row.get::<_, i64>(1)));
    c.batch_execute("DROP TABLE rust_items, rust_load").await?;
    Ok(())
}

/// Works on one row, with prepared statements.
async fn work(id: i32) -> BTreeSet<String> {
    let mut errors = BTreeSet::new();
    let (c, _rx) = connect().await.unwrap();
    let update = c.prepare("UPDATE rust_load SET n = n + 1 WHERE id = $1").await.unwrap();
    let select = c.prepare("SELECT id, n FROM rust_load WHERE id = $1").await.unwrap();
    for _ in 0..40 {
        for st in [&update, &select] {
            if let Err(e) = c.query(st, &[&id]).await {
                errors.insert(e.to_string());
            }
        }
    }
    errors
}
