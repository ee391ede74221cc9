package router

import "testing"

func TestTellsTime(t *testing.T) {
	r := New(Options{})
	for sql, want := range map[string]bool{
		"SELECT now()": true, "SELECT CURRENT_TIMESTAMP": true, "SELECT localtime(3)": true, "SELECT current_date - 1": true,
		"SELECT a FROM t WHERE b > (SELECT max(c) FROM u WHERE d < transaction_timestamp())": true,
		"SELECT 'today'::date": true, "SELECT $1::timestamptz": true, "SELECT timestamp 'now'": true, "SELECT age(a) FROM t": true,
		"SELECT 1": false, "SELECT current_user, a FROM t WHERE b = 3": false, "SELECT clock_timestamp()": false, "SELECT a::text FROM t": false,
	} {
		for range 2 {
			if got := r.Plan([]byte(sql)).Clock; got != want {
				t.Errorf("%s: %v", sql, got)
			}
		}
	}
}
