package proxy_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// The oracle is PostgreSQL itself: a script is sent to it directly and through
// the proxy, and the answers must be the same, message by message.

// endMark is asked for behind each script, to know where its answers end.
const endMark = "end of the script"

// play sends the messages of a script in one write, cut at one place unless cut
// is 0, and returns the trace of all answers.
func play(c *pgtest.RawClient, script []byte, cut int) string {
	p := withEnd(script)
	w := &pgtest.CutWriter{W: trySender{c}, Pause: time.Millisecond}
	if cut > 0 && cut < len(p) {
		w.Cuts = []int{cut}
	}
	_, _ = w.Write(p) // the script may have closed the connection: answers will say so
	return answers(c)
}

// trySender writes with the client's timeout for each write.
type trySender struct{ c *pgtest.RawClient }

func (w trySender) Write(p []byte) (int, error) { return len(p), w.c.TrySend(p) }

// withEnd adds what tells the end of a script's answers.
func withEnd(script []byte) []byte {
	return pgtest.Join(script, pgtest.Sync(), pgtest.Query("ROLLBACK"), pgtest.Query("SELECT '"+endMark+"'"))
}

// answers reads up to that end and returns the trace.
func answers(c *pgtest.RawClient) string {
	defer c.Trace() // a client that plays many scripts does not keep them
	var msgs []pgtest.Msg
	for {
		m, err := c.TryRead()
		if err != nil {
			return pgtest.Trace(msgs) + " and then " + err.Error()
		}
		msgs = append(msgs, m)
		if m.Type == wire.DataRow && strings.Contains(m.String(), endMark) {
			c.ReadUntilReady()
			return pgtest.Trace(msgs)
		}
	}
}

// direct is a client of the primary itself.
func direct(t testing.TB, c *pgtest.Cluster) *pgtest.RawClient {
	t.Helper()
	d := pgtest.DialRaw(t, c.Primary.Addr())
	d.Login(testUser, testPassword, "database", "postgres")
	return d
}

func ext(messages ...[]byte) []byte { return pgtest.Join(messages...) }

// corpus are scripts that found faults in other proxies (faults.md, 2.1). All
// of them leave the session as it was.
var corpus = map[string][]byte{
	"simple":             pgtest.Query("SELECT 1"),
	"empty":              pgtest.Query(""),
	"semicolons":         pgtest.Query(" ;; "),
	"comment":            pgtest.Query("/* nothing */ -- at all"),
	"several":            pgtest.Query("SELECT 1; SELECT 2, 'b'; SELECT 3"),
	"several with error": pgtest.Query("SELECT 1; SELECT 1/0; SELECT 3"),
	"syntax error":       pgtest.Query("SELEC 1"),
	"no columns":         pgtest.Query("SELECT"),
	"notice":             pgtest.Query("DO $$ BEGIN RAISE NOTICE 'n1'; RAISE WARNING 'w1'; END $$"),
	"long row":           pgtest.Query("SELECT repeat('x', 70000)"),
	"many rows":          pgtest.Query("SELECT i, repeat('y', 50) FROM generate_series(1, 3000) i"),
	"transaction":        ext(pgtest.Query("BEGIN"), pgtest.Query("SELECT 1"), pgtest.Query("COMMIT")),
	"failed transaction": ext(pgtest.Query("BEGIN"), pgtest.Query("SELECT 1/0"), pgtest.Query("SELECT 1"), pgtest.Query("ROLLBACK")),
	"read only":          ext(pgtest.Query("BEGIN READ ONLY"), pgtest.Query("SELECT 1"), pgtest.Query("COMMIT")),
	"savepoint": ext(pgtest.Query("BEGIN"), pgtest.Query("SAVEPOINT a"), pgtest.Query("SELECT 1/0"),
		pgtest.Query("ROLLBACK TO a"), pgtest.Query("SELECT 2"), pgtest.Query("COMMIT")),
	"set and show": ext(pgtest.Query("SET application_name = 'x y'"), pgtest.Query("SHOW application_name"),
		pgtest.Query("RESET application_name")),
	"set in transaction": ext(pgtest.Query("BEGIN"), pgtest.Query("SET LOCAL work_mem = '123kB'"), pgtest.Query("SHOW work_mem"),
		pgtest.Query("ROLLBACK")),

	"extended":                     pgtest.Extended("SELECT $1::text", "a"),
	"extended twice":               ext(pgtest.Extended("SELECT $1::text", "a"), pgtest.Extended("SELECT 2")),
	"describe":                     ext(pgtest.Parse("", "SELECT $1::int + 1"), pgtest.Describe('S', ""), pgtest.Sync()),
	"named":                        ext(pgtest.Parse("n1", "SELECT $1::text"), pgtest.Bind("", "n1", "v"), pgtest.Describe('P', ""), pgtest.Execute("", 0), pgtest.Close('S', "n1"), pgtest.Sync()),
	"named over Sync":              ext(pgtest.Parse("n2", "SELECT $1::text"), pgtest.Sync(), pgtest.Bind("", "n2", "v"), pgtest.Execute("", 0), pgtest.Sync(), pgtest.Close('S', "n2"), pgtest.Sync()),
	"named twice":                  ext(pgtest.Parse("n3", "SELECT 1"), pgtest.Sync(), pgtest.Parse("n3", "SELECT 2"), pgtest.Sync(), pgtest.Close('S', "n3"), pgtest.Sync()),
	"name after error":             ext(pgtest.Parse("n4", "SELEC 1"), pgtest.Sync(), pgtest.Parse("n4", "SELECT 2"), pgtest.Bind("", "n4"), pgtest.Execute("", 0), pgtest.Sync(), pgtest.Close('S', "n4"), pgtest.Sync()),
	"unknown name":                 ext(pgtest.Bind("", "nobody"), pgtest.Execute("", 0), pgtest.Sync()),
	"close unknown":                ext(pgtest.Close('S', "nobody"), pgtest.Close('P', "nobody"), pgtest.Sync()),
	"unnamed over Sync":            ext(pgtest.Parse("", "SELECT $1::text"), pgtest.Sync(), pgtest.Bind("", "", "v"), pgtest.Execute("", 0), pgtest.Sync()),
	"no unnamed":                   ext(pgtest.Query(""), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Sync()),
	"portal":                       ext(pgtest.Parse("", "SELECT i FROM generate_series(1, 5) i"), pgtest.Bind("p", ""), pgtest.Execute("p", 2), pgtest.Execute("p", 2), pgtest.Execute("p", 2), pgtest.Sync()),
	"portal after Sync":            ext(pgtest.Parse("", "SELECT 1"), pgtest.Bind("p", ""), pgtest.Sync(), pgtest.Execute("p", 0), pgtest.Sync()),
	"parse error":                  ext(pgtest.Parse("", "SELEC 1"), pgtest.Bind("", ""), pgtest.Describe('P', ""), pgtest.Execute("", 0), pgtest.Sync()),
	"bind error":                   ext(pgtest.Parse("", "SELECT $1::int"), pgtest.Bind("", "", "x"), pgtest.Execute("", 0), pgtest.Sync()),
	"execute error":                ext(pgtest.Parse("", "SELECT 1/$1::int"), pgtest.Bind("", "", "0"), pgtest.Execute("", 0), pgtest.Execute("", 0), pgtest.Sync()),
	"query after error in a batch": ext(pgtest.Parse("", "SELEC 1"), pgtest.Query("SELECT 'skipped'"), pgtest.Sync()),
	"query in a batch":             ext(pgtest.Parse("", "SELECT 1"), pgtest.Query("SELECT 'in the middle'"), pgtest.Bind("", ""), pgtest.Sync()),
	"syncs alone":                  ext(pgtest.Sync(), pgtest.Sync()),
	"flush alone":                  ext(pgtest.Flush(), pgtest.Flush()),
	"flush in a batch":             ext(pgtest.Parse("", "SELECT 1"), pgtest.Flush(), pgtest.Bind("", ""), pgtest.Flush(), pgtest.Execute("", 0), pgtest.Sync()),
	"extended transaction": ext(pgtest.Extended("BEGIN"), pgtest.Extended("SELECT 1"), pgtest.Extended("SELECT 1/0"),
		pgtest.Extended("SELECT 1"), pgtest.Extended("ROLLBACK")),

	"function call":                       pgtest.FunctionCall(1598), // random(): its answer is normalized
	"function call in failed transaction": ext(pgtest.Query("BEGIN"), pgtest.Query("SELECT 1/0"), pgtest.FunctionCall(1598), pgtest.Query("ROLLBACK")),

	"copy out":              pgtest.Query("COPY (SELECT i FROM generate_series(1, 5) i) TO STDOUT"),
	"copy out extended":     pgtest.Extended("COPY (SELECT 7) TO STDOUT"),
	"copy in":               ext(pgtest.Query("COPY sink FROM STDIN"), pgtest.CopyData("1\ta\n2\tb\n"), pgtest.CopyData("3\tc\n"), pgtest.CopyDone()),
	"copy in fail":          ext(pgtest.Query("COPY sink FROM STDIN"), pgtest.CopyData("1\ta\n"), pgtest.CopyFail("changed my mind")),
	"copy in bad row":       ext(pgtest.Query("COPY sink FROM STDIN"), pgtest.CopyData("x\ta\n"), pgtest.CopyDone()),
	"copy in late data":     ext(pgtest.Query("COPY sink FROM STDIN"), pgtest.CopyData("x\ta\n"), pgtest.CopyData("2\tb\n"), pgtest.CopyData("3\tb\n"), pgtest.CopyDone()),
	"copy in with sync":     ext(pgtest.Query("COPY sink FROM STDIN"), pgtest.CopyData("1\ta\n"), pgtest.Flush(), pgtest.Sync(), pgtest.CopyData("2\tb\n"), pgtest.CopyDone()),
	"copy in extended":      ext(pgtest.Parse("", "COPY sink FROM STDIN"), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Sync(), pgtest.CopyData("1\ta\n"), pgtest.CopyDone(), pgtest.Sync()),
	"copy in extended fail": ext(pgtest.Parse("", "COPY sink FROM STDIN"), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.CopyFail("no"), pgtest.Sync()),
	"copy no table":         ext(pgtest.Query("COPY nowhere FROM STDIN"), pgtest.CopyData("1\n"), pgtest.CopyDone()),
	"copy data alone":       ext(pgtest.CopyData("1\n"), pgtest.CopyDone(), pgtest.Query("SELECT 1")),
	"copy and statement":    ext(pgtest.Query("COPY sink FROM STDIN; SELECT 'behind'"), pgtest.CopyData("1\ta\n"), pgtest.CopyDone()),
}

// normal takes out of a trace what differs from call to call.
func normal(name, trace string) string {
	if name == "function call" && strings.HasPrefix(trace, "V") {
		return "V" + trace[strings.Index(trace, " "):]
	}
	return trace
}

func oracleSetup(t testing.TB) *pgtest.Cluster {
	t.Helper()
	c := realCluster(t)
	if err := c.Primary.Exec(t.Context(), "postgres", "SET client_min_messages = error; CREATE TABLE IF NOT EXISTS sink (i int, s text); GRANT ALL ON sink TO public"); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitCaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOracleCorpus(t *testing.T) {
	c := oracleSetup(t)
	for _, servers := range []string{"one server", "with replicas"} {
		list := addrs(c)
		if servers == "one server" {
			list = list[:1]
		}
		h := newHarness(t, harnessOptions{Servers: list, Proxy: "default_pool_size = 1"})
		d, p, other := direct(t, c), h.Client(t), h.Client(t)
		for name, script := range corpus {
			t.Run(servers+"/"+name, func(t *testing.T) {
				want := normal(name, play(d, script, 0))
				if got := normal(name, play(p, script, 0)); got != want {
					t.Errorf("through the proxy\n got %s\nwant %s", got, want)
				}
				// Somebody else on the same server connection sees nothing of it.
				if got, want := other.Query("SELECT 'other'"), `T D(other) C(SELECT 1) Z(I)`; got != want {
					t.Errorf("another client got %s, want %s", got, want)
				}
				other.Send(pgtest.Extended("SELECT 'contender'"))
				other.ReadUntilReady()
			})
		}
	}
}

// TestOracleEveryCut sends each script cut at each of its bytes.
func TestOracleEveryCut(t *testing.T) {
	c := oracleSetup(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	d, p := direct(t, c), h.Client(t)
	for name, script := range corpus {
		if name == "many rows" || name == "long row" {
			continue // the cut is in the request, which is as short as others
		}
		t.Run(name, func(t *testing.T) {
			want := normal(name, play(d, script, 0))
			for cut := 1; cut <= len(script); cut++ {
				if got := normal(name, play(p, script, cut)); got != want {
					t.Fatalf("cut at %d\n got %s\nwant %s", cut, got, want)
				}
			}
		})
	}
}

// TestOracleServerInPieces has the server's answers arrive byte by byte.
func TestOracleServerInPieces(t *testing.T) {
	c := oracleSetup(t)
	relay := pgtest.NewRelay(t, c.Primary.Addr())
	h := newHarness(t, harnessOptions{Servers: []string{relay.Addr()}, Proxy: "default_pool_size = 1"})
	d, p := direct(t, c), h.Client(t)
	relay.Set(pgtest.ToClient, pgtest.Fault{Size: 1})
	for name, script := range corpus {
		if name == "many rows" || name == "long row" {
			continue // half a million pieces
		}
		t.Run(name, func(t *testing.T) {
			want := normal(name, play(d, script, 0))
			if got := normal(name, play(p, script, 0)); got != want {
				t.Errorf("got %s\nwant %s", got, want)
			}
		})
	}
	relay.Heal()
}

// randomScript makes up a session of the extended protocol with everything that
// can go wrong in it.
func randomScript(r *rand.Rand) []byte {
	texts := []string{"SELECT 1", "SELECT $1::text", "SELECT 1/0", "SELEC", "SELECT i FROM generate_series(1, 3) i", ""}
	names := []string{"", "", "s1", "s2", "s3"}
	portals := []string{"", "", "p1"}
	pick := func(l []string) string { return l[r.IntN(len(l))] }
	var out []byte
	// An unnamed statement is used only in the batch that parses it: what is left
	// of one after an error is the one thing that differs, see clientUnnamed.
	parsed := false
	statement := func() string {
		name := pick(names)
		if name == "" && !parsed {
			out = append(out, pgtest.Parse("", pick(texts))...)
			parsed = true
		}
		return name
	}
	for range 1 + r.IntN(14) {
		switch r.IntN(16) {
		case 0, 1, 2:
			name := pick(names)
			parsed = parsed || name == ""
			out = append(out, pgtest.Parse(name, pick(texts))...)
		case 3, 4, 5:
			name := statement()
			if r.IntN(2) == 0 {
				out = append(out, pgtest.Bind(pick(portals), name)...)
			} else {
				out = append(out, pgtest.Bind(pick(portals), name, "v")...)
			}
		case 6, 7:
			out = append(out, pgtest.Execute(pick(portals), r.IntN(3))...)
		case 8:
			name := statement()
			out = append(out, pgtest.Describe('S', name)...)
		case 9:
			out = append(out, pgtest.Describe('P', pick(portals))...)
		case 10:
			out = append(out, pgtest.Close('S', pick(names))...)
		case 11:
			out = append(out, pgtest.Close('P', pick(portals))...)
		case 12:
			out = append(out, pgtest.Flush()...)
		case 13:
			parsed = false
			out = append(out, pgtest.Query([]string{"SELECT 'q'", "SELECT 1/0", "", "BEGIN", "COMMIT"}[r.IntN(5)])...)
		default:
			parsed = false
			out = append(out, pgtest.Sync()...)
		}
	}
	return out
}

// TestOracleRandom compares sessions that nobody has thought of.
func TestOracleRandom(t *testing.T) {
	c := oracleSetup(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	other := h.Client(t)
	for seed := range uint64(400) {
		d, p := direct(t, c), h.Client(t)
		r := rand.New(rand.NewPCG(seed, 1))
		var history []string
		for step := range 4 {
			script := randomScript(r)
			want := play(d, script, 0)
			got := play(p, script, 0)
			history = append(history, fmt.Sprintf("%q", script))
			if got != want {
				t.Fatalf("seed %d, step %d\nsent %s\n got %s\nwant %s", seed, step, strings.Join(history, "\n     "), got, want)
			}
		}
		// The end of the session may leave a transaction open.
		d.Terminate()
		p.Terminate()
		if seed%4 == 0 {
			other.Query("SELECT 'other'")
		}
	}
}
