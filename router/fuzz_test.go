package router

import "testing"

func FuzzPlan(f *testing.F) {
	for _, c := range fixtures(f) {
		f.Add(c.sql)
	}
	for _, sql := range hot[:5] {
		f.Add(sql)
	}
	f.Add("SELECT a IN (1,2,(VALUES (1),(2))), ARRAY[1,ARRAY[2,2]], b IN (SELECT 1)")
	f.Add("SELECT 'a\\'b\\\\' U&'\\0061' $a$ $$ $a$ -- x\n'c'")
	f.Fuzz(func(t *testing.T, sql string) {
		if len(sql) > 1<<14 {
			return
		}
		checkPlan(t, sql)
		if lexable(sql) {
			checkShape(t, sql)
		}
	})
}
