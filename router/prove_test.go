package router

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
)

// smallCatalog has a table, an unlogged one, a function of each kind and a view's
// worth of names, in schemas app and other.
func smallCatalog() *Objects {
	return &Objects{
		Functions: []Function{
			{OID: 20001, Schema: "app", Name: "pure", Least: 1, Most: 1, Kind: 'f', Volatile: 's', Signature: "app.pure(int)"},
			{OID: 20002, Schema: "app", Name: "writes", Least: 0, Most: AnyArgs, Kind: 'f', Volatile: 'v', Signature: "app.writes()"},
			{OID: 20003, Schema: "other", Name: "pure", Least: 1, Most: 1, Kind: 'f', Volatile: 'v', Signature: "other.pure(int)"},
		},
		Builtins: []Function{
			{OID: 100, Schema: "pg_catalog", Name: "length", Kind: 'f', Volatile: 'i'},
			{OID: 101, Schema: "pg_catalog", Name: "strange", Kind: 'f', Volatile: 's'},
			{OID: 102, Schema: "pg_catalog", Name: "newer", Kind: 'f', Volatile: 'i'},
		},
		Relations: []Relation{
			{OID: 30001, Schema: "app", Name: "users", Kind: 'r', Persistence: 'p'},
			{OID: 30002, Schema: "other", Name: "users", Kind: 'r', Persistence: 'u'},
		},
		ServerPath: `"$user", public`, Known: true,
		Paths: []PathSetting{
			{Role: "", Database: true, Value: "app"},
			{Role: "carol", Value: "other"},
			{Role: "dave", Value: "other"},
			{Role: "dave", Database: true, Value: "app, other"},
		},
	}
}

func proverWith(o *Objects) *Prover {
	pr := NewProver("db")
	pr.Switch(true)
	pr.Learn(NewCatalog(o, Overrides{}), Nanotime(), Nanotime(), false)
	return pr
}

func TestProveByPath(t *testing.T) {
	pr := proverWith(smallCatalog())
	rt := New(Options{})
	for _, v := range []struct {
		login, role, value string
		set                bool
		sql                string
		read               bool
	}{
		{"alice", "alice", "", false, "SELECT pure(1) FROM users", true}, // the database's
		{"carol", "carol", "", false, "SELECT pure(1) FROM users", false},
		{"dave", "dave", "", false, "SELECT * FROM users", false}, // either may be meant
		{"carol", "carol", "app", true, "SELECT pure(1) FROM users", true},
		{"carol", "carol", "APP", true, "SELECT pure(1) FROM users", true},
		{"alice", "alice", `"APP", public`, true, "SELECT * FROM users", false},
		{"alice", "app", `"$user"`, true, "SELECT * FROM users", true},
		{"alice", "alice", `"$user"`, true, "SELECT * FROM users", false},
		{"alice", "alice", `"$user"`, true, "SELECT * FROM app.users", true},
		{"alice", "alice", "", true, "SELECT length('x'), newer(1)", true},
		{"alice", "alice", "", true, "SELECT strange(1)", false},
		{"alice", "alice", "", true, "SELECT pg_catalog.strange(1)", false},
		{"alice", "alice", "app", true, "SELECT pure(1, 2)", false},
		{"alice", "alice", "app", true, "SELECT writes(1, 2, 3)", false},
	} {
		p := pr.Prove(rt.Plan([]byte(v.sql)), pr.Path(v.login, v.role, v.value, v.set))
		if read := p.Class == ClassRead; read != v.read {
			t.Errorf("%s of %s as %s with %q: %v %s", v.sql, v.login, v.role, v.value, p.Class, p.Reason)
		}
	}
	if p := pr.Prove(rt.Plan([]byte("SELECT * FROM users")), pr.AnyPath()); p.Class != ClassPrimary {
		t.Error("with a search_path that is not known an unlogged table of the name does not matter")
	}
}

// TestProofsAreKept: a proof is made once for each shape, catalog and path, and
// found without allocation.
func TestProofsAreKept(t *testing.T) {
	pr := proverWith(smallCatalog())
	rt := New(Options{})
	draft := rt.Plan([]byte("SELECT pure(length('x')) FROM users WHERE id = 5"))
	path := pr.Path("alice", "alice", "", false)
	first := pr.Prove(draft, path)
	if first.Class != ClassRead || first == draft || first.Draft() != draft {
		t.Fatalf("%v %s", first.Class, first.Reason)
	}
	if other := pr.Path("alice", "alice", "", false); other != path {
		t.Error("the same search_path is another path")
	}
	if n := testing.AllocsPerRun(200, func() {
		if pr.Stale(path) || pr.Prove(draft, path) != first {
			t.Error("the proof is not found again")
		}
	}); n >= 1 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
	// A reading that finds nothing new changes nothing; another catalog does.
	pr.Learn(nil, Nanotime(), Nanotime(), true)
	if pr.Stale(path) || pr.Prove(draft, path) != first {
		t.Error("the same catalog again has made proofs stale")
	}
	o := smallCatalog()
	o.Functions[0].Volatile = 'v'
	pr.Learn(NewCatalog(o, Overrides{}), Nanotime(), Nanotime(), false)
	if !pr.Stale(path) || pr.Prove(draft, path).Class != ClassPrimary {
		t.Error("a path of an older catalog proves something")
	}
	next := pr.Prove(draft, pr.Path("alice", "alice", "", false))
	if next.Class != ClassPrimary || !strings.Contains(string(next.Reason), "VOLATILE") {
		t.Errorf("%v %s", next.Class, next.Reason)
	}
	// A refusal counts for this proof, until the catalog changes again.
	pr.Learn(NewCatalog(smallCatalog(), Overrides{}), Nanotime(), Nanotime(), false)
	path = pr.Path("alice", "alice", "", false)
	if p := pr.Prove(draft, path); p.Class != ClassRead || !p.Refuse("no") {
		t.Error("the proof of the first catalog is not made anew")
	}
	if pr.Prove(draft, path).Refused() == "" || draft.Refused() != "" {
		t.Error("the refusal is forgotten, or everybody's")
	}
	if n := len(*draft.open.proofs.Load()); n > maxProofs {
		t.Errorf("%d proofs", n)
	}
}

// TestProveWhileItChanges: between a change and a reading that has begun after it
// nothing is proved.
func TestProveWhileItChanges(t *testing.T) {
	pr := proverWith(smallCatalog())
	rt := New(Options{})
	draft := rt.Plan([]byte("SELECT * FROM users"))
	prove := func() Class { return pr.Prove(draft, pr.Path("alice", "alice", "", false)).Class }
	if prove() != ClassRead {
		t.Fatal("not proved")
	}
	begun := Nanotime()
	pr.Changed(Nanotime(), false)
	if prove() != ClassPrimary {
		t.Error("proved while the catalog changes")
	}
	select {
	case <-pr.Kicks():
		t.Error("a change that has not ended asks for a reading")
	default:
	}
	pr.Learn(nil, begun, Nanotime(), true)
	if prove() != ClassPrimary {
		t.Error("proved by a reading that began before the change")
	}
	pr.Changed(Nanotime(), true)
	<-pr.Kicks()
	pr.Learn(nil, Nanotime(), Nanotime(), true)
	if prove() != ClassRead {
		t.Error("not proved by a reading that began after the change")
	}
	if p := rt.Plan([]byte("SELECT 1")); pr.Prove(p, nil) != p {
		t.Error("what refers to nothing needs a proof")
	}
	var none *Prover
	none.Changed(1, true)
	none.Refresh()
	if none.Prove(draft, nil) != draft || none.Since() != 0 {
		t.Error("no Prover, and something proved")
	}
}

func TestProveConcurrently(t *testing.T) {
	pr := proverWith(smallCatalog())
	rt := New(Options{})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				sql := fmt.Sprintf("SELECT pure(1), a%d FROM users", i%20)
				role := []string{"alice", "carol", "dave", "erin"}[(g+i)%4]
				p := pr.Prove(rt.Plan([]byte(sql)), pr.Path(role, role, "", false))
				want := ClassRead
				if role == "carol" || role == "dave" {
					want = ClassPrimary
				}
				if p.Class != want && p.Reason != reasonUnread {
					t.Errorf("%s of %s: %v %s", sql, role, p.Class, p.Reason)
					return
				}
				if i%50 == 0 {
					pr.Learn(NewCatalog(smallCatalog(), Overrides{}), Nanotime(), Nanotime(), false)
					rt.Shapes()
				}
			}
		})
	}
	wg.Wait()
}

// TestPathsAreBounded: clients choose search_paths, so many of them are one.
func TestPathsAreBounded(t *testing.T) {
	pr := proverWith(smallCatalog())
	for i := range 3 * maxPaths {
		pr.Path("alice", "alice", fmt.Sprint("s", i), true)
	}
	if len(pr.paths) > maxPaths+2 {
		t.Errorf("%d paths", len(pr.paths))
	}
	if p := pr.Path("alice", "alice", "another", true); p.schemas != nil {
		t.Error("one path more is told apart")
	}
}

// TestProvedKeepsAllOfAPlan: a field that is added to Plan must be taken over.
func TestProvedKeepsAllOfAPlan(t *testing.T) {
	p := &Plan{}
	v := reflect.ValueOf(p).Elem()
	for i := range v.NumField() {
		f := v.Field(i)
		if !v.Type().Field(i).IsExported() {
			continue
		}
		switch f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Uint8, reflect.Uint32:
			f.SetUint(1)
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
		case reflect.Pointer:
			f.Set(reflect.New(f.Type().Elem()))
		default:
			t.Fatalf("a field of kind %v", f.Kind())
		}
	}
	q := reflect.ValueOf(p.proved()).Elem()
	for i := range v.NumField() {
		if v.Type().Field(i).IsExported() && !reflect.DeepEqual(v.Field(i).Interface(), q.Field(i).Interface()) {
			t.Errorf("%s is lost", v.Type().Field(i).Name)
		}
	}
}

// TestNothingKeepsALiteral looks at all that is remembered of a statement, whatever
// its field.
func TestNothingKeepsALiteral(t *testing.T) {
	rt := New(Options{})
	pr := proverWith(smallCatalog())
	for _, sql := range []string{
		"SELECT f('hunter2'), 'hunter2'::app.t, $$hunter2$$ FROM app.users u WHERE u.name = E'hunter2' AND x @@@ 'hunter2'",
		"INSERT INTO t SELECT g('hunter2')", "WITH w AS (SELECT 'hunter2') SELECT * FROM w", "EXPLAIN SELECT f('hunter2')",
	} {
		pr.Prove(rt.Plan([]byte(sql)), pr.AnyPath())
	}
	if rt.Stats().Entries != 4 {
		t.Fatalf("%+v", rt.Stats())
	}
	for _, e := range rt.cache.ring {
		for _, s := range stringsIn(reflect.ValueOf(e), make(map[uintptr]bool)) {
			if strings.Contains(s, "hunter") {
				t.Errorf("%s: %q is remembered", e.shape, s)
			}
		}
	}
}

// stringsIn finds the strings that can be reached from a value, with a depth limit
// on pointers by remembering them.
func stringsIn(v reflect.Value, seen map[uintptr]bool) []string {
	var out []string
	switch v.Kind() {
	case reflect.String:
		return []string{v.String()}
	case reflect.Pointer:
		if v.IsNil() || seen[v.Pointer()] {
			return nil
		}
		seen[v.Pointer()] = true
		return stringsIn(v.Elem(), seen)
	case reflect.Struct:
		for i := range v.NumField() {
			out = append(out, stringsIn(v.Field(i), seen)...)
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			out = append(out, stringsIn(v.Index(i), seen)...)
		}
	}
	return out
}

// TestCacheCountsWhatItHolds: what a statement refers to counts as memory.
func TestCacheCountsWhatItHolds(t *testing.T) {
	rt := New(Options{MaxShapeBytes: 1 << 20})
	for i := range 2000 {
		var b strings.Builder
		fmt.Fprintf(&b, "SELECT a%d", i)
		for j := range 20 {
			fmt.Fprintf(&b, ", some_function_%d_%d(1)", i, j)
		}
		rt.Plan([]byte(b.String()))
	}
	s := rt.Stats()
	if s.Bytes > 1<<20 || s.Entries < 50 || s.Entries > 500 || s.Evictions == 0 {
		t.Errorf("%+v", s)
	}
	checkCache(t, rt.cache)
}

// What a statement costs that was seen before: its plan, and the proof of it.
func BenchmarkProveHit(b *testing.B) {
	pr := proverWith(smallCatalog())
	rt := New(Options{})
	text := []byte("SELECT pure(length(name)) FROM users WHERE id = 4711")
	path := pr.Path("alice", "alice", "", false)
	draft := rt.Plan(text)
	b.Run("both", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			pr.Prove(rt.Plan(text), path)
		}
	})
	b.Run("proof", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			pr.Prove(draft, path)
		}
	})
}

func BenchmarkProveMiss(b *testing.B) {
	pr := proverWith(smallCatalog())
	rt := New(Options{})
	draft := rt.Plan([]byte("SELECT pure(length(name)) FROM users WHERE id = 4711"))
	path := pr.Path("alice", "alice", "", false)
	b.ReportAllocs()
	for b.Loop() {
		draft.open.proofs.Store(nil)
		pr.Prove(draft, path)
	}
}
