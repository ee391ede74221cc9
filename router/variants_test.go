package router

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// nasty are other literals of a token's kind. None has a backslash before a
// quote in a plain string.
func nasty(kind tokenKind) []string {
	switch kind {
	case tokString:
		return []string{
			`''`, `'x'`, `'a''b'`, `E'\'; DELETE FROM t; --'`, `$$ ' FOR UPDATE $$`, `$q$ $$ nextval('s') $q$`,
			`U&'\0061'`, `'/*'`, `'--'`, "'a'\n'b'", `'c:\dir'`, `'\\'`, `e'\\'`, `'pg_temp'`, `'é'`,
		}
	case tokNational:
		return []string{`N''`, `n'FOR UPDATE'`}
	case tokBits:
		return []string{`B''`, `b'10'`}
	case tokHex:
		return []string{`X''`, `x'FF'`}
	case tokInteger:
		return []string{"0", "7", "2147483647", "0001"}
	case tokFloat:
		return []string{"1.", ".5", "1e-5", "2147483648", "99999999999999999999", "1.5e10"}
	case tokParam:
		return []string{"$1", "$2", "$99999"}
	}
	return nil
}

// TestLiteralsDoNotMatter puts other literals into every statement that has a
// shape: the plan is the very same one.
func TestLiteralsDoNotMatter(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, f := range fixtures(t) {
		if new(shaper).shape([]byte(f.sql)) != shaped {
			continue
		}
		r := New(Options{MaxShapes: 8})
		want := r.Plan([]byte(f.sql))
		for range 20 {
			var b strings.Builder
			l := lexer{src: []byte(f.sql)}
			end := 0
			for tok := l.next(); tok.kind != tokEnd; tok = l.next() {
				b.WriteString(f.sql[end:tok.start])
				end = tok.end
				if others := nasty(tok.kind); others != nil {
					fmt.Fprintf(&b, " %s ", others[random.IntN(len(others))])
				} else {
					b.WriteString(f.sql[tok.start:tok.end])
				}
			}
			b.WriteString(f.sql[end:])
			if got := r.Plan([]byte(b.String())); got != want {
				t.Fatalf("%s\n%s\n%s\n%s", f.sql, summary(want), b.String(), summary(got))
			}
		}
	}
}

// TestSplicedStatements exchanges tokens between the fixtures. Many of the
// results parse, and for those everything must hold that holds for any text.
func TestSplicedStatements(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	var pool [tokBad][]string
	all := fixtures(t)
	for _, f := range all {
		l := lexer{src: []byte(f.sql)}
		for tok := l.next(); tok.kind != tokEnd && tok.kind != tokBad; tok = l.next() {
			pool[tok.kind] = append(pool[tok.kind], f.sql[tok.start:tok.end])
		}
	}
	rounds, parsed := 6, 0
	if testing.Short() {
		rounds = 1
	}
	for range rounds {
		for _, f := range all {
			var b strings.Builder
			l := lexer{src: []byte(f.sql)}
			for tok := l.next(); tok.kind != tokEnd && tok.kind != tokBad; tok = l.next() {
				text := f.sql[tok.start:tok.end]
				switch random.IntN(25) {
				case 0:
					text = pool[tok.kind][random.IntN(len(pool[tok.kind]))]
				case 1:
					other := all[random.IntN(len(all))].sql
					text = "(" + strings.TrimRight(other, "; ") + "\n)"
				case 2:
					text += " /* ' */"
				}
				b.WriteString(text)
				b.WriteByte(' ')
			}
			sql := b.String()
			checkPlan(t, sql)
			if lexable(sql) {
				checkShape(t, sql)
			}
			if analyse([]byte(sql)).Reason != reasonNoParse {
				parsed++
			}
		}
	}
	if parsed < rounds*len(all)/10 {
		t.Errorf("only %d of %d parse", parsed, rounds*len(all))
	}
}
