"""psycopg 3 on the console."""

import psycopg

for how in ({}, {"prepare": True}):
    with psycopg.connect(autocommit=True) as conn:
        print("version", str(conn.execute("SHOW VERSION", **how).fetchone()[0].startswith("PgBouncer 1.25")).lower())
        print("databases", *sorted(row[0] for row in conn.execute("SHOW DATABASES", **how).fetchall()))
        try:
            conn.execute("SHOW NONSENSE", **how)
        except psycopg.Error as e:
            print("refused", e.sqlstate)
