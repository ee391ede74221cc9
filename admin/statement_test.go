package admin

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for sql, want := range map[string]statement{
		"":                                 {kind: kindEmpty},
		" \t\r\n ;; ":                      {kind: kindEmpty},
		"-- x\n/* y */":                    {kind: kindEmpty},
		"Show Pools":                       {kind: kindCommand, verb: "show", arg: "Pools", hasArg: true},
		"PAUSE \"a \"\"b\"\" c;d\"":        {kind: kindCommand, verb: "pause", arg: `a "b" c;d`, hasArg: true},
		"kill":                             {kind: kindCommand, verb: "kill"},
		"kill -- all of them":              {kind: kindCommand, verb: "kill"},
		"kill a b":                         {kind: kindInvalid, verb: "kill"},
		"kill 'a'":                         {kind: kindInvalid, verb: "kill"},
		"kill my-db":                       {kind: kindInvalid, verb: "kill"},
		"kill; kill":                       {kind: kindInvalid, verb: "kill"},
		"kill \"open":                      {kind: kindInvalid},
		"kill /* open":                     {kind: kindInvalid},
		"'kill'":                           {kind: kindInvalid},
		"set a=1":                          {kind: kindSet, verb: "set", key: "a", value: "1"},
		"SET LOCAL A TO 'x;y'":             {kind: kindSet, verb: "set", key: "a", value: "x;y"},
		"SET session = 1":                  {kind: kindSet, verb: "set", key: "session", value: "1"},
		"set a=1; reload":                  {kind: kindInvalid, verb: "set"},
		"set a":                            {kind: kindInvalid, verb: "set"},
		"SET SESSION CHARACTERISTICS AS x": {kind: kindSet, verb: "set", key: "transaction"},
		"begin":                            {kind: kindTx, verb: "begin", begin: true, tag: "BEGIN"},
		"begin isolation level repeatable read, read only": {kind: kindTx, verb: "begin", begin: true, tag: "BEGIN"},
		"begin; commit":           {kind: kindInvalid, verb: "begin"},
		"START":                   {kind: kindInvalid, verb: "start"},
		"end":                     {kind: kindTx, verb: "end", tag: "COMMIT"},
		"rollback work":           {kind: kindTx, verb: "rollback", tag: "ROLLBACK"},
		"rollback to savepoint x": {kind: kindInvalid, verb: "rollback"},
	} {
		want.text = sql
		if got := parse(sql); got != want {
			t.Errorf("%q\n got %+v\nwant %+v", sql, got, want)
		}
	}
}

// FuzzConsole: no text makes the parser panic, none but a SELECT or SHOW is
// readable by a stats user, and what an error says is bounded.
func FuzzConsole(f *testing.F) {
	for sql := range everyStatement() {
		f.Add(sql)
		f.Add(strings.ToLower(sql) + " ; -- x")
	}
	for _, sql := range []string{"PAUSE \"a\"\"b\"", "SET a = 'b''c'", "/*", "\"", "'", "BEGIN; COMMIT", "set time zone x", "\x00\xff"} {
		f.Add(sql)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		r, e := prepare(sql, false)
		if e != nil {
			if len(e.Message) > longestEcho+100 || e.Code == "" {
				t.Errorf("error %q", e.Message)
			}
		} else if r.entry != nil && !r.entry.readOnly {
			t.Errorf("a stats user may run %q", sql)
		}
		admin, ae := prepare(sql, true)
		if ae == nil && admin.entry != nil && (admin.entry.run == nil) == (admin.entry.rows == nil) {
			t.Errorf("%q has nothing to run", sql)
		}
	})
}
