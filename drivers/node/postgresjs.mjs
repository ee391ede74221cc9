// postgres.js: pipelined prepared statements over its own pool.
import postgres from 'postgres';

const show = (what, value) => console.log(`${what}: ${JSON.stringify(value)}`);
const code = async (promise) => Promise.resolve(promise).then(() => 'no error', (e) => e.code ?? e.message);
const sleep = (ms) => new Promise((r) => setTimeout(r, ms));

const sql = postgres({ max: 4, onnotice: () => {} });
show('connect', await sql`SELECT current_database(), current_user`);
await sql`DROP TABLE IF EXISTS postgresjs_items, postgresjs_load`;
await sql`CREATE TABLE postgresjs_items (id int PRIMARY KEY, name text, data jsonb)`;

// Prepared, unprepared, and pipelined.
await Promise.all(Array.from({ length: 20 }, (_, i) => sql`INSERT INTO postgresjs_items VALUES (${i}, ${`name ${i}`}, ${{ n: i }})`));
show('rows', await sql`SELECT count(*)::int, sum((data->>'n')::int)::int FROM postgresjs_items`);
show('pipeline', (await Promise.all(Array.from({ length: 30 }, (_, i) => sql`SELECT ${i}::int * 2 AS n`))).map(([r]) => r.n));
show('simple', (await sql`SELECT 1 AS a; SELECT 2 AS b`.simple()).map((r) => [...r]));
show('unsafe', await sql.unsafe('SELECT name FROM postgresjs_items WHERE id = $1', [3], { prepare: true }));
show('describe', (await sql`SELECT id, name FROM postgresjs_items WHERE id = ${1}`.describe()).columns.map((c) => c.name));
show('insert helper', await sql`INSERT INTO postgresjs_items ${sql([{ id: 50, name: 'a' }, { id: 51, name: 'b' }], 'id', 'name')} RETURNING id`);

// Transactions.
await sql.begin(async (tx) => {
  await tx`INSERT INTO postgresjs_items VALUES (100, 'kept')`;
  show('unique', await code(tx.savepoint((sp) => sp`INSERT INTO postgresjs_items VALUES (100, 'twice')`)));
});
show('kept', await sql`SELECT count(*)::int FROM postgresjs_items WHERE id = 100`);
show('rolled back', await code(sql.begin(async (tx) => { await tx`INSERT INTO postgresjs_items VALUES (101)`; throw new Error('no'); })));
show('read only', await code(sql.begin('read only', (tx) => tx`INSERT INTO postgresjs_items VALUES (102)`)));
show('syntax', await code(sql`SELEC`));

// COPY.
const writable = await sql`COPY postgresjs_items (id, name) FROM STDIN`.writable();
await new Promise((resolve, reject) => {
  writable.on('finish', resolve).on('error', reject);
  for (let i = 1000; i < 2000; i++) writable.write(`${i}\tcopied ${i}\n`);
  writable.end();
});
let out = '';
for await (const chunk of await sql`COPY (SELECT id, name FROM postgresjs_items WHERE id > 1997 ORDER BY id) TO STDOUT`.readable()) out += chunk;
show('copy out', out);

// Cursors.
const pages = [];
await sql`SELECT id FROM postgresjs_items WHERE id >= 1000 ORDER BY id`.cursor(400, (rows) => { pages.push([rows.length, rows[0].id]); });
show('cursor', pages);
let first = [];
await sql`SELECT id FROM postgresjs_items ORDER BY id`.cursor(2, (rows) => { first = rows.map((r) => r.id); return sql.CLOSE; });
show('closed cursor', first);
let sum = 0;
await sql`SELECT i FROM generate_series(1, 1000) i`.forEach((r) => { sum += r.i; });
show('forEach', sum);

// Cancel and timeouts.
const slow = sql`SELECT pg_sleep(30)`;
setTimeout(() => slow.cancel(), 300);
show('cancel', await code(slow));
const one = await sql.reserve();
await one`SET statement_timeout = '200ms'`;
show('timeout', await code(one`SELECT pg_sleep(30)`));
await one`RESET statement_timeout`;

// Settings.
await one`SET search_path = pg_catalog, public`;
await one`SELECT set_config('app.who', ${'somebody'}, false)`;
show('settings', await one`SELECT current_setting('search_path') AS path, current_setting('app.who') AS who`);
await one`CREATE TEMP TABLE postgresjs_temp AS SELECT i FROM generate_series(1, 10) i`;
show('temporary', await one`SELECT sum(i)::int FROM postgresjs_temp`);
await one`DROP TABLE postgresjs_temp`;
show('lock', await one`SELECT pg_try_advisory_lock(4246) AS ok`);
show('unlock', await one`SELECT pg_advisory_unlock(4246) AS ok`);
one.release();

// LISTEN: over a connection of its own.
const heard = [];
const { unlisten } = await sql.listen('postgresjs news', (payload) => heard.push(payload));
await sql.notify('postgresjs news', 'one');
await sql.begin((tx) => tx`SELECT pg_notify('postgresjs news', 'two')`);
for (let i = 0; i < 100 && heard.length < 2; i++) await sleep(50);
show('listen', heard);
await unlisten();

// A migration while others work.
await sql`CREATE TABLE postgresjs_load (id int PRIMARY KEY, n int)`;
await sql`INSERT INTO postgresjs_load SELECT i, 0 FROM generate_series(0, 7) i`;
const errors = new Set();
const work = async (i) => {
  for (let n = 0; n < 40; n++) {
    try {
      await sql`UPDATE postgresjs_load SET n = n + 1 WHERE id = ${i}`;
      await sql`SELECT id, n FROM postgresjs_load WHERE id = ${i}`;
    } catch (e) { errors.add(e.message); }
  }
};
const migrate = async () => {
  for (let i = 0; i < 5; i++) await sql.unsafe(`ALTER TABLE postgresjs_load ADD COLUMN c${i} int DEFAULT ${i}`);
};
await Promise.all([migrate(), ...Array.from({ length: 8 }, (_, i) => work(i))]);
show('migration', [...errors]);
show('after it', await sql`SELECT * FROM postgresjs_load ORDER BY id`.then((r) => [...r]));
await sql`DROP TABLE postgresjs_items, postgresjs_load`;
await sql.end();
