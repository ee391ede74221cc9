// node-postgres (pg): its pool, prepared statements, cursors and COPY streams.
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import pg from 'pg';
import Cursor from 'pg-cursor';
import { from as copyFrom, to as copyTo } from 'pg-copy-streams';

const show = (what, value) => console.log(`${what}: ${JSON.stringify(value)}`);
const code = async (promise) => promise.then(() => 'no error', (e) => e.code ?? e.message);
const sleep = (ms) => new Promise((r) => setTimeout(r, ms));

const client = new pg.Client();
await client.connect();
show('connect', (await client.query('SELECT current_database(), current_user')).rows);
await client.query('DROP TABLE IF EXISTS node_items, node_load; CREATE TABLE node_items (id int PRIMARY KEY, name text, data jsonb)');

// Prepared and unprepared.
for (let i = 0; i < 5; i++) {
  await client.query('INSERT INTO node_items VALUES ($1, $2, $3)', [i, `name ${i}`, { n: i }]);
}
const named = { name: 'by id', text: 'SELECT name, data FROM node_items WHERE id = $1' };
for (let i = 0; i < 3; i++) show('prepared', (await client.query({ ...named, values: [i] })).rows);
show('array', (await client.query({ text: 'SELECT id, name FROM node_items ORDER BY id LIMIT 2', rowMode: 'array' })).rows);
show('several', (await client.query('SELECT 1 AS a; SELECT 2 AS b')).map((r) => r.rows));

// Queries queued one behind the other.
show('queued', (await Promise.all([1, 2, 3].map((i) => client.query('SELECT $1::int * 2 AS n', [i])))).map((r) => r.rows[0].n));

// Transactions.
await client.query('BEGIN');
await client.query("INSERT INTO node_items VALUES (100, 'kept')");
await client.query('SAVEPOINT s');
show('unique', await code(client.query("INSERT INTO node_items VALUES (100, 'twice')")));
show('aborted', await code(client.query('SELECT 1')));
await client.query('ROLLBACK TO s');
await client.query('COMMIT');
show('kept', (await client.query('SELECT count(*)::int FROM node_items WHERE id = 100')).rows);
show('syntax', await code(client.query('SELEC')));

// COPY.
await pipeline(Readable.from((function* () { for (let i = 1000; i < 2000; i++) yield `${i}\tcopied ${i}\n`; })()),
  client.query(copyFrom('COPY node_items (id, name) FROM STDIN')));
let out = '';
for await (const chunk of client.query(copyTo('COPY (SELECT id, name FROM node_items WHERE id > 1997 ORDER BY id) TO STDOUT'))) out += chunk;
show('copy out', out);
show('copy error', await code(pipeline(Readable.from(['1000\ttwice\n']), client.query(copyFrom('COPY node_items (id, name) FROM STDIN')))));

// Cursors.
const cursor = client.query(new Cursor('SELECT id FROM node_items WHERE id >= $1 ORDER BY id', [1000]));
show('cursor', [(await cursor.read(2)).map((r) => r.id), (await cursor.read(3)).map((r) => r.id)]);
await cursor.close();
await client.query("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT id FROM node_items ORDER BY id DESC; COMMIT");
show('held cursor', (await client.query('FETCH 2 FROM c')).rows);
await client.query('CLOSE c');

// Cancel and timeouts.
const pool = new pg.Pool({ max: 4 });
const { rows: [{ pid }] } = await client.query('SELECT pg_backend_pid() AS pid');
show('a number', pid > 0);
const limited = new pg.Client({ query_timeout: 300 });
limited.on('error', () => {});
await limited.connect();
show('query_timeout', await code(limited.query('SELECT pg_sleep(30)')));
limited.connection.stream.destroy();
await client.query("SET statement_timeout = '200ms'");
show('timeout', await code(client.query('SELECT pg_sleep(30)')));
show('SHOW', (await client.query('SHOW statement_timeout')).rows);
await client.query('RESET statement_timeout');

// Settings.
await client.query("SET search_path = pg_catalog, public; SET TIME ZONE 'Europe/Paris'");
await client.query("SELECT set_config('app.who', $1, false)", ['somebody']);
show('settings', (await client.query("SELECT current_setting('search_path') AS path, current_setting('app.who') AS who, '2026-07-01 12:00Z'::timestamptz::text AS at")).rows);
await client.query('BEGIN');
await client.query("SET LOCAL app.who = 'another'");
await client.query('ROLLBACK');
show('after local', (await client.query('SHOW app.who')).rows);

await client.query('RESET search_path; RESET TIME ZONE');

// LISTEN.
const heard = [];
const listener = new pg.Client();
await listener.connect();
listener.on('notification', (n) => heard.push([n.channel, n.payload]));
await listener.query('LISTEN node_news; LISTEN "Node News"');
await client.query("NOTIFY node_news, 'one'");
await client.query('SELECT pg_notify($1, $2)', ['Node News', 'two']);
await listener.query("NOTIFY node_news, 'three'");
for (let i = 0; i < 100 && heard.length < 3; i++) await sleep(50);
show('listen', heard);
await listener.end();

// Advisory locks and temporary tables.
const rival = await pool.connect();
show('lock', (await client.query('SELECT pg_try_advisory_lock(4245) AS ok')).rows);
show('rival', (await rival.query('SELECT pg_try_advisory_lock(4245) AS ok')).rows);
show('unlock', (await client.query('SELECT pg_advisory_unlock(4245) AS ok')).rows);
rival.release();
await client.query('CREATE TEMP TABLE node_temp AS SELECT i FROM generate_series(1, 10) i');
show('temporary', (await client.query('SELECT sum(i)::int FROM node_temp')).rows);
await client.query('DROP TABLE node_temp');

// A migration while others work.
await client.query('CREATE TABLE node_load (id int PRIMARY KEY, n int); INSERT INTO node_load SELECT i, 0 FROM generate_series(0, 7) i');
const errors = new Set();
const work = async (i) => {
  for (let n = 0; n < 40; n++) {
    try {
      await pool.query('UPDATE node_load SET n = n + 1 WHERE id = $1', [i]);
      await pool.query({ name: 'load', text: 'SELECT id, n FROM node_load WHERE id = $1', values: [i] });
    } catch (e) { errors.add(e.message); }
  }
};
const migrate = async () => {
  for (let i = 0; i < 5; i++) await client.query(`ALTER TABLE node_load ADD COLUMN c${i} int DEFAULT ${i}`);
};
await Promise.all([migrate(), ...Array.from({ length: 8 }, (_, i) => work(i))]);
show('migration', [...errors]);
show('after it', (await client.query('SELECT * FROM node_load ORDER BY id')).rows);
await client.query('DROP TABLE node_items, node_load');
await pool.end();
await client.end();
