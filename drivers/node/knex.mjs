// Knex: its migrations, with their lock table, while the first tables are in use.
import knex from 'knex';

const show = (what, value) => console.log(`${what}: ${JSON.stringify(value)}`);
const code = async (promise) => Promise.resolve(promise).then(() => 'no error', (e) => e.code ?? e.message);

const steps = {
  '1_tables': {
    up: (db) => db.schema.createTable('knex_owner', (t) => { t.increments(); t.string('name').unique(); })
      .createTable('knex_pet', (t) => { t.increments(); t.string('name'); t.integer('owner_id').references('knex_owner.id').onDelete('CASCADE'); }),
    down: (db) => db.schema.dropTable('knex_pet').dropTable('knex_owner'),
  },
  '2_columns': {
    up: async (db) => {
      await db.schema.alterTable('knex_owner', (t) => { t.jsonb('extra').defaultTo('{}'); t.index(['name'], 'knex_by_name'); });
      await db('knex_owner').insert({ name: 'made by a migration' });
    },
    down: (db) => db.schema.alterTable('knex_owner', (t) => { t.dropColumn('extra'); t.dropIndex(['name'], 'knex_by_name'); }),
  },
  '3_concurrently': {
    config: { transaction: false },
    up: (db) => db.raw('CREATE INDEX CONCURRENTLY knex_by_owner ON knex_pet (owner_id)'),
    down: (db) => db.raw('DROP INDEX knex_by_owner'),
  },
};
const migrationSource = {
  getMigrations: async () => Object.keys(steps),
  getMigrationName: (m) => m,
  getMigration: async (m) => steps[m],
};
const e = process.env;
const db = knex({
  client: 'pg', pool: { min: 0, max: 4 }, migrations: { migrationSource, tableName: 'knex_steps' },
  connection: { host: e.PGHOST, port: Number(e.PGPORT), user: e.PGUSER, password: e.PGPASSWORD, database: e.PGDATABASE },
});

await db.raw('DROP TABLE IF EXISTS knex_pet, knex_owner, knex_steps, knex_steps_lock CASCADE');
show('up', (await db.migrate.up())[1]);
const errors = new Set();
let over = false;
const work = async (i) => {
  for (let n = 0; !over || n < 30; n++) {
    try {
      await db.transaction(async (tx) => {
        const [{ id }] = await tx('knex_owner').insert({ name: `load ${i} ${n}` }).returning('id');
        await tx('knex_pet').insert({ name: 'x', owner_id: id });
        await tx('knex_owner').where({ id }).delete();
      });
      await new Promise((r) => setTimeout(r, 5)); // CREATE INDEX CONCURRENTLY waits for a gap
    } catch (e) { errors.add(e.message); }
  }
};
const load = Array.from({ length: 3 }, (_, i) => work(i));
show('latest', (await db.migrate.latest())[1]);
over = true;
await Promise.all(load);
show('load during the migration', [...errors]);
show('status', await db.migrate.status());
show('list', (await db.migrate.list())[0].map((m) => m.name));
show('row', await db('knex_owner').select('name', 'extra'));
const owners = await db('knex_owner').insert([{ name: 'a' }, { name: 'b' }]).returning('name');
show('insert', owners);
show('unique', await code(db('knex_owner').insert({ name: 'a' })));
show('upsert', (await db('knex_owner').insert({ name: 'a', extra: { n: 1 } }).onConflict('name').merge().returning(['name', 'extra'])));
await db.batchInsert('knex_pet', Array.from({ length: 300 }, (_, i) => ({ name: `pet ${i}` })), 50);
show('count', await db('knex_pet').count());
let seen = 0;
for await (const row of db('knex_pet').select('id').orderBy('id').stream({ batchSize: 20 })) seen += row.id > 0 ? 1 : 0;
show('stream', seen);
show('savepoint', await db.transaction(async (tx) => {
  await tx.transaction((sp) => sp('knex_owner').insert({ name: 'b' })).catch((e) => e.code);
  return tx('knex_owner').where({ name: 'b' }).count();
}));
show('timeout', await code(db.raw('SELECT pg_sleep(30)').timeout(300, { cancel: true })));
show('down', (await db.migrate.rollback(undefined, true))[1]);
await db.raw('DROP TABLE IF EXISTS knex_steps, knex_steps_lock');
await db.destroy();
