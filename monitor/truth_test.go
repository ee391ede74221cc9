package monitor

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/pgtest"
	"pgproxy/router"
)

var showTruth = flag.Bool("truth", false, "log each statement of the corpus that could go to a replica and does not")

// outcome is what a server made of a statement.
type outcome struct {
	code   string // SQLSTATE, "" for success
	answer string // rows in order of their text, and the tag
	detail string
}

// truthSession runs statements on one server, each so that it leaves nothing.
type truthSession struct {
	t    *testing.T
	dsn  string
	conn *pgconn.PgConn
}

func (s *truthSession) exec(sql string) outcome {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	if s.conn == nil || s.conn.IsClosed() {
		conn, err := pgconn.Connect(ctx, s.dsn)
		if err != nil {
			s.t.Fatal(err)
		}
		s.conn = conn
		s.t.Cleanup(func() { closeCatalog(conn) })
	}
	results, err := s.conn.Exec(ctx, sql).ReadAll()
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		return outcome{code: pe.Code, detail: pe.Message}
	}
	if err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
	var b strings.Builder
	for _, r := range results {
		var rows []string
		for _, row := range r.Rows {
			var line []string
			for _, v := range row {
				if v == nil {
					line = append(line, "NULL")
				} else {
					line = append(line, string(v))
				}
			}
			rows = append(rows, strings.Join(line, "|"))
		}
		slices.Sort(rows)
		fmt.Fprintf(&b, "%s\n%s\n", strings.Join(rows, "\n"), r.CommandTag)
	}
	return outcome{answer: b.String()}
}

// undone runs a statement in a transaction that is rolled back.
func (s *truthSession) undone(sql string) outcome {
	if o := s.exec("BEGIN"); o.code != "" {
		s.t.Fatalf("BEGIN: %+v", o)
	}
	o := s.exec(sql)
	s.exec("ROLLBACK")
	return o
}

// own are statements of a kind that answers no question: they change the session,
// which is the proxy's business whatever the server.
func own(sql string) bool {
	verb, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(sql)), " ")
	switch strings.TrimRight(verb, ";") {
	case "SET", "RESET", "BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE", "PREPARE",
		"EXECUTE", "DEALLOCATE", "DECLARE", "FETCH", "MOVE", "CLOSE", "DISCARD", "LISTEN", "UNLISTEN", "LOAD":
		return true
	}
	return false
}

// local are locks that only the standby would know of.
func local(sql string) bool {
	return strings.Contains(sql, "advisory") || strings.Contains(sql, "lock_me")
}

// TestTruthOfAStandby asks a real standby about every statement of the corpus:
// what the router would send there must run there, and answer as the primary does;
// and of what a standby can answer as the primary does, nearly all must go there.
func TestTruthOfAStandby(t *testing.T) {
	c := pgtest.Start(t, pgtest.Options{Replicas: 1, Settings: map[string]string{"autovacuum": "off"}})
	withChecker(t, c)
	ctx := t.Context()
	if err := c.CreateRole(ctx, "truth", "truth", ""); err != nil {
		t.Fatal(err)
	}
	schema, err := os.ReadFile("testdata/truth/schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	makeCatalog(t, c, "truth", "SET client_min_messages = error; "+string(schema))
	pr := proverOf(t, c, "truth", nil)
	if err := c.WaitCaughtUp(ctx); err != nil {
		t.Fatal(err)
	}
	primary := &truthSession{t: t, dsn: c.Primary.DSN("truth", "truth")}
	standby := &truthSession{t: t, dsn: c.Replicas[0].DSN("truth", "truth")}
	path := pr.Path("truth", "truth", "", false)
	rt := router.New(router.Options{})

	corpus := truthCorpus(t, primary)
	began := time.Now()
	there := make([]outcome, len(corpus))
	for i, sql := range corpus {
		there[i] = standby.undone(sql)
	}
	// On the primary what only reads comes first, since a write that is rolled back
	// leaves its traces in plans.
	order := make([]int, len(corpus))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return strings.Compare(there[a].code, there[b].code) })
	var total, ran, possible, sent, unstable, failed, session int
	missed := make(map[string]int)
	for _, i := range order {
		total++
		sql, there := corpus[i], there[i]
		plan := pr.Prove(rt.Plan([]byte(sql)), path)
		read := plan.Class != router.ClassPrimary
		here := primary.undone(sql)
		if here.code == "" || there.code == "" {
			ran++
		}
		if own(sql) {
			session++
			continue
		}
		if read && there.code != here.code {
			failed++
			t.Errorf("%s\n goes to a replica (%s), which says %q %s; the primary says %q", sql, plan.Reason, there.code, there.detail, here.code)
			continue
		}
		if there.code != "" || here.code != "" || !read && local(sql) {
			continue
		}
		if there.answer != here.answer {
			// An answer that is another one each time proves nothing.
			if again := primary.undone(sql); again.answer != here.answer {
				unstable++
			} else {
				if read {
					failed++
					t.Errorf("%s\n goes to a replica (%s), which answers\n%.300s\nand the primary\n%.300s", sql, plan.Reason, there.answer, here.answer)
				}
				continue
			}
		}
		possible++
		if read {
			sent++
		} else {
			missed[string(plan.Reason)]++
			if *showTruth {
				t.Logf("stays on the primary: %.150s (%s)", sql, plan.Reason)
			}
		}
	}
	share := 100 * float64(sent) / float64(max(possible, 1))
	t.Logf("%d statements, %d of which ran on a server, in %v: %d that went to a replica would have failed or answered otherwise; "+
		"of %d that a standby can answer as the primary does %d go there: %.1f %% (%d answer otherwise each time, %d are the session's own)",
		total, ran, time.Since(began).Round(time.Second), failed, possible, sent, share, unstable, session)
	if total < 3000 || ran < 3000 {
		t.Errorf("%d statements, %d of which ran: want 3000", total, ran)
	}
	if share < 95 {
		t.Errorf("%.1f %% of what a standby can answer goes there: want 95. What kept the others:", share)
		for why, n := range missed {
			t.Logf("%5d %s", n, why)
		}
	}
}
