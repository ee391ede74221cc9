package router

import "testing"

func TestUndoable(t *testing.T) {
	r := New(Options{})
	for sql, want := range map[string]bool{
		"SELECT 1": true,
		"SELECT * FROM t WHERE a = $1 FOR UPDATE":                             true,
		"UPDATE t SET a = a + 1 WHERE b IN (SELECT 2)":                        true,
		"INSERT INTO t VALUES (1, lower('A')), (2, 'b')":                      true,
		"DELETE FROM t WHERE a < now() RETURNING *":                           true,
		"WITH x AS (DELETE FROM t RETURNING a) INSERT INTO u SELECT a FROM x": true,
		"UPDATE t SET a = mine(a)":                                            false,
		"INSERT INTO t VALUES (nextval('s'))":                                 false,
		"SELECT pg_advisory_lock(1)":                                          false,
		"SELECT dblink_exec('UPDATE t SET a = 1')":                            false,
		"UPDATE t SET a = 1; UPDATE t SET a = 2":                              false,
		"SELECT 1 INTO u":                                                     false,
		"CREATE TABLE u (i int)":                                              false,
		"DO $$ BEGIN END $$":                                                  false,
		"SET work_mem = '1MB'":                                                false,
		"COPY t TO STDOUT":                                                    false,
		"NOTIFY x":                                                            false,
		"SELECT a OPERATOR(mine.+) 1 FROM t FOR SHARE":                        false,
	} {
		if got := r.Plan([]byte(sql)).Undoable; got != want {
			t.Errorf("%s: %v, want %v", sql, got, want)
		}
	}
}
