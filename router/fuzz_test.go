package router

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	pg "github.com/pganalyze/pg_query_go/v6"
)

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
			checkStatements(t, sql)
		}
	})
}

// checkStatements compares where statements begin and end: at the semicolons that
// the lexer finds outside of brackets and bodies, PostgreSQL's splitter must see the
// same ends, and comments must lie between the lexer's tokens.
func checkStatements(t *testing.T, sql string) {
	t.Helper()
	if _, err := pg.Parse(sql); err != nil {
		return // where a text that is no SQL is cut does not matter
	}
	stmts, err := pg.SplitWithScanner(sql, false)
	if err != nil {
		return
	}
	type span struct{ start, end int }
	var comments []span
	scanned, err := pg.Scan(sql)
	if err != nil {
		return
	}
	for _, s := range scanned.GetTokens() {
		if k := s.GetToken(); k == pg.Token_SQL_COMMENT || k == pg.Token_C_COMMENT {
			comments = append(comments, span{int(s.GetStart()), int(s.GetEnd())})
		}
	}
	ends := make(map[int]bool) // of statements, as PostgreSQL's splitter has them
	at := 0
	for _, one := range stmts {
		i := strings.Index(sql[at:], one)
		if i < 0 {
			return
		}
		at += i + len(one)
		ends[at] = true
	}
	l := lexer{src: []byte(sql)}
	last, atomic := 0, false
	for {
		tok := l.next()
		if tok.kind == tokEnd || tok.kind == tokBad || l.odd&oddToken != 0 {
			return
		}
		text := sql[tok.start:tok.end]
		for _, c := range comments {
			if tok.start < c.end && c.start < tok.end && tok.kind != tokString && tok.kind != tokNational {
				t.Fatalf("%q: %q holds the comment %q", sql, text, sql[c.start:c.end])
			}
		}
		atomic = atomic || strings.EqualFold(text, "atomic")
		if text == ";" && !atomic && last > 0 && !ends[last] && !ends[tok.start] {
			inside := false
			for end := range ends {
				inside = inside || strings.TrimSpace(sql[min(end, last):max(end, last)]) == ""
			}
			if !inside && l.depthAt(tok.start) == 0 {
				t.Fatalf("%q: a statement ends at %d here, and not for PostgreSQL: %q", sql, tok.start, stmts)
			}
		}
		if text != ";" {
			last = tok.end
		}
	}
}

// depthAt counts the brackets that are open at a place.
func (l *lexer) depthAt(end int) int {
	depth := 0
	m := lexer{src: l.src}
	for t := m.next(); t.kind != tokEnd && t.kind != tokBad && t.start < end; t = m.next() {
		switch l.src[t.start] {
		case '(':
			depth++
		case ')':
			depth--
		}
	}
	return depth
}

// FuzzOneShapeOnePlan puts other literals, comments and white space into a text:
// where that has the same shape it has the very same plan, and where the text
// parses, the shape must be the same.
func FuzzOneShapeOnePlan(f *testing.F) {
	for i, c := range fixtures(f) {
		f.Add(c.sql, uint64(i))
	}
	f.Add("SELECT $tag$ ' -- $tag$, E'\\'', N'x', B'01', X'1F', 1.5e3, $1 FROM t WHERE a IN (1, 2, 3) /* c /* d */ */", uint64(1))
	f.Add("INSERT INTO t VALUES (1, 'a'), (2, 'b') -- c\n; SELECT 1", uint64(2))
	f.Fuzz(func(t *testing.T, sql string, seed uint64) {
		if len(sql) > 1<<12 || !lexable(sql) {
			return
		}
		s := new(shaper)
		if s.shape([]byte(sql)) != shaped {
			return
		}
		shape := string(s.out)
		other := respelled(sql, rand.New(rand.NewPCG(seed, 5)))
		o := new(shaper)
		if o.shape([]byte(other)) != shaped {
			return // a literal with a backslash of its own, say
		}
		if string(o.out) != shape && !strings.Contains(shape, "/* pgproxy") && !strings.Contains(string(o.out), "/* pgproxy") {
			if _, err := pg.Parse(sql); err == nil {
				t.Fatalf("%q\n%q\nare one statement with two shapes:\n%q\n%q", sql, other, shape, o.out)
			}
			return
		}
		r := New(Options{MaxShapes: 8})
		first := r.Plan([]byte(sql))
		if again := r.Plan([]byte(other)); string(o.out) == shape && again != first {
			t.Fatalf("%q\n%q\nhave one shape and two plans:\n%s\n%s", sql, other, summary(first), summary(again))
		}
	})
}

// respelled writes a text with other literals, and comments between its tokens.
func respelled(sql string, random *rand.Rand) string {
	var b strings.Builder
	l := lexer{src: []byte(sql)}
	if leadingHint([]byte(sql)).found {
		return sql
	}
	for tok := l.next(); tok.kind != tokEnd && tok.kind != tokBad; tok = l.next() {
		text := sql[tok.start:tok.end]
		if others := nasty(tok.kind); others != nil && tok.kind != tokParam {
			text = others[random.IntN(len(others))]
		}
		if b.Len() > 0 {
			b.WriteString([]string{" ", "\n", " /* ; ' */ ", " -- ' ; /*\n", "\t"}[random.IntN(5)])
		}
		// Neighbours that the text had stuck together mean the same apart, but for
		// operators and strings, which grow together or apart.
		b.WriteString(text)
	}
	return b.String()
}

// FuzzCatalogTexts: what comes from a server's catalog is read without a panic, and
// nothing is found in it that it does not hold.
func FuzzCatalogTexts(f *testing.F) {
	f.Add("({QUERY :commandType 1 :rtable ({RTE :relid 16400}) :jointree {FROMEXPR :quals {OPEXPR :opno 96}}})", `"$user", public`)
	f.Add("BEGIN PERFORM set_config('a', f(1), true); CREATE TEMP TABLE x (i int); INSERT INTO a.b SELECT nextval('s'); END", `"a""b",C , d`)
	f.Add("{A :funcid (o 1 2} \\} :opnos (i", `"`)
	f.Fuzz(func(t *testing.T, text, path string) {
		tree := ScanTree(text)
		for _, list := range [][]uint32{tree.Functions, tree.Operators, tree.Relations, tree.Domains} {
			for _, oid := range list {
				if !strings.Contains(text, fmt.Sprint(oid)) {
					t.Fatalf("%q does not hold %d", text, oid)
				}
			}
		}
		body := ScanBody(text)
		for _, n := range append(body.Calls, body.Reads...) {
			if name := strings.ReplaceAll(n.Name, `"`, `""`); !strings.Contains(strings.ToLower(text), strings.ToLower(name)) {
				t.Fatalf("%q does not hold %q", text, n.Name)
			}
		}
		if schemas, ok := schemasOf(path, "role"); ok && len(schemas) > strings.Count(path, ",")+1 {
			t.Fatalf("%q is %v", path, schemas)
		}
	})
}

// TestTimeIsLinear: texts that are as nasty as they are long. One that took more
// than linear time would take minutes or hours; the limit is for a slow machine.
func TestTimeIsLinear(t *testing.T) {
	const size = 1 << 20
	fill := func(unit string) string { return strings.Repeat(unit, size/len(unit)) }
	var names strings.Builder
	for i := 0; names.Len() < size; i++ {
		fmt.Fprintf(&names, ", f%d(t%d.c%d, x::y%d)", i, i, i, i)
	}
	var ctes strings.Builder
	for i := 0; ctes.Len() < size/2; i++ {
		fmt.Fprintf(&ctes, "c%d AS (SELECT 1), ", i)
	}
	for name, sql := range map[string]string{
		"names": "SELECT 1" + names.String(), "ctes": "WITH " + ctes.String() + "z AS (SELECT 1) SELECT * FROM z",
		"brackets": fill("("), "lists": "SELECT " + fill("1 IN (2,"), "rows": "VALUES " + fill("(1,(2)),"), "arrays": "SELECT " + fill("ARRAY[ARRAY[1],"),
		"comments": fill("/*"), "nested": fill("/* /*") + fill("*/"), "dashes": fill("--\n"), "dollars": "SELECT " + fill("$a$ $b$ "),
		"strings": "SELECT " + fill("'a'\n"), "spaced strings": "SELECT " + fill("'a'\n--\n"), "quotes": "SELECT " + fill(`"a""`), "backslashes": "SELECT " + fill(`'\'`),
		"operators": "SELECT 1 " + fill("+@-"), "chain": "SELECT 1" + fill(" + 1"), "semicolons": fill(";"), "statements": fill("SELECT 1;"),
		"points": "SELECT " + fill("a.b.c, "), "numbers": "SELECT " + fill("1e1.1 "), "hints": "/* pgproxy: " + fill("target=") + "*/ SELECT 1",
		"values": "INSERT INTO t VALUES " + fill("(1, 'a'),") + "(1, 'b')", "sets": fill("SET a.b = "), "unions": "SELECT 1" + fill(" UNION SELECT 1"),
		"joins": "SELECT 1 FROM t0" + fill(" JOIN t USING (a)"), "cases": "SELECT " + fill("CASE a WHEN 1 THEN "), "params": "SELECT " + fill("$1,"),
	} {
		began := time.Now()
		rt := New(Options{})
		rt.Plan([]byte(sql[:min(len(sql), size)]))
		ScanBody(sql)
		ScanTree(sql)
		if d := time.Since(began); d > 30*time.Second {
			t.Errorf("%s: %v", name, d)
		}
		if rt.Stats().Panics != 0 {
			t.Errorf("%s: the analysis panicked", name)
		}
	}
}
