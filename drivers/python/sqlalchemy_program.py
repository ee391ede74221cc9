"""SQLAlchemy over psycopg 3 and over asyncpg: its pool, its ORM, savepoints, streams and reflection."""

import asyncio
import os

from sqlalchemy import ForeignKey, String, create_engine, event, exc, func, inspect, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

import load


def show(what, value):
    print(f"{what}: {value}", flush=True)


class Base(DeclarativeBase):
    pass


class Owner(Base):
    __tablename__ = "alchemy_owner"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    pets: Mapped[list["Pet"]] = relationship(back_populates="owner", cascade="all, delete-orphan")


class Pet(Base):
    __tablename__ = "alchemy_pet"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    owner_id: Mapped[int] = mapped_column(ForeignKey("alchemy_owner.id"))
    owner: Mapped[Owner] = relationship(back_populates="pets")


def url(driver):
    e = os.environ
    password = e["PGPASSWORD"].replace(" ", "%20")
    return f"postgresql+{driver}://{e['PGUSER']}:{password}@{e['PGHOST']}:{e['PGPORT']}/{e['PGDATABASE']}"


engine = create_engine(url("psycopg"), pool_size=3, max_overflow=2, pool_pre_ping=True)


@event.listens_for(engine, "connect")
def on_connect(dbapi, _):
    dbapi.execute("SET app.tenant = 'everybody'")
    dbapi.commit()


Base.metadata.drop_all(engine)
Base.metadata.create_all(engine)
show("tables", sorted(t for t in inspect(engine).get_table_names() if t.startswith("alchemy")))
show("columns", [(c["name"], str(c["type"])) for c in inspect(engine).get_columns("alchemy_pet")])

with Session(engine) as s:
    s.add_all(Owner(name=f"owner {i}", pets=[Pet(name=f"pet {i}.{j}") for j in range(3)]) for i in range(20))
    s.commit()
    show("counts", (s.scalar(select(func.count()).select_from(Owner)), s.scalar(select(func.count()).select_from(Pet))))
    o = s.scalars(select(Owner).where(Owner.name == "owner 7")).one()
    show("lazy", [p.name for p in o.pets])
    o.pets[0].name = "renamed"
    s.commit()
    show("renamed", s.scalars(select(Pet.name).where(Pet.owner_id == o.id).order_by(Pet.id)).all())
    with s.begin_nested():
        s.add(Owner(name="nested"))
    try:
        with s.begin_nested():
            s.add(Owner(name="nested"))
            s.flush()
    except exc.IntegrityError as e:
        show("savepoint", e.orig.sqlstate)
    s.commit()
    show("nested", s.scalar(select(func.count()).where(Owner.name == "nested")))
    show("tenant", s.scalar(text("SHOW app.tenant")))
    s.execute(text("SET LOCAL app.tenant = 'nobody'"))
    show("local", s.scalar(text("SHOW app.tenant")))
    s.rollback()
    show("rolled back", s.scalar(text("SHOW app.tenant")))

with engine.connect() as c:
    rows = c.execution_options(stream_results=True, max_row_buffer=100).execute(text("SELECT i FROM generate_series(1, 5000) i"))
    show("stream", sum(r.i for r in rows))
with engine.connect() as c:
    c.execute(text("CREATE TEMP TABLE alchemy_temp (i int) ON COMMIT DROP"))
    c.execute(text("INSERT INTO alchemy_temp VALUES (:i)"), [{"i": i} for i in range(10)])
    show("temporary", c.scalar(text("SELECT sum(i) FROM alchemy_temp")))
    c.execute(text("SELECT pg_advisory_xact_lock(4244)"))
    c.rollback()
with engine.connect().execution_options(isolation_level="SERIALIZABLE") as c:
    show("isolation", c.scalar(text("SHOW transaction_isolation")))
with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
    c.execute(text("VACUUM alchemy_pet"))
    show("autocommit", c.scalar(text("SELECT 1")))
with engine.connect() as c:
    c.execute(text("SET statement_timeout = '200ms'"))
    c.commit()
    try:
        c.execute(text("SELECT pg_sleep(30)"))
    except exc.OperationalError as e:
        show("timeout", e.orig.sqlstate)
    c.rollback()
    c.execute(text("RESET statement_timeout"))
    c.commit()
with engine.connect() as c:
    raw = c.connection.driver_connection
    c.execute(text("LISTEN alchemy_news"))
    c.commit()
    with engine.begin() as d:
        d.execute(text("NOTIFY alchemy_news, 'inside'"))
    show("listen", [n.payload for n in raw.notifies(timeout=10, stop_after=1)])
    c.execute(text("UNLISTEN *"))
    c.commit()


def work(thread, n):
    with Session(engine) as s:
        o = s.scalars(select(Owner).where(Owner.name == f"owner {thread}")).one()
        o.pets[n % 3].name = f"round {n}"
        s.commit()


def migrate():
    for i in range(4):
        with engine.begin() as c:
            c.execute(text(f"ALTER TABLE alchemy_owner ADD COLUMN c{i} int DEFAULT {i}"))


show("migration", load.run(work, migrate, rounds=25))
with engine.connect() as c:
    show("after it", c.execute(text("SELECT * FROM alchemy_owner WHERE name = 'owner 3'")).one()[1:])


async def main():
    e = create_async_engine(url("asyncpg"), pool_size=3)
    async with e.begin() as c:
        show("async", (await c.execute(text("SELECT count(*) FROM alchemy_pet"))).scalar())
        await c.execute(text("INSERT INTO alchemy_owner (name) VALUES (:n)"), [{"n": f"async {i}"} for i in range(5)])
    async with e.connect() as c:
        result = await c.stream(text("SELECT name FROM alchemy_owner WHERE name LIKE 'async%' ORDER BY name"))
        show("async stream", [row.name async for row in result])
    await asyncio.gather(*[one(e, i) for i in range(8)])
    await e.dispose()


async def one(e, i):
    async with e.begin() as c:
        await c.execute(text("UPDATE alchemy_owner SET name = name WHERE name = :n"), {"n": f"async {i}"})


asyncio.run(main())
Base.metadata.drop_all(engine)
engine.dispose()
