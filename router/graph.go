package router

import (
	"regexp"
	"strings"
)

// verdict is why something is not harmless; nil is harmless. It is never changed.
type verdict struct {
	why  Reason
	mild bool // it only reads
	run  bool // it does nothing while a statement is only planned
	// frees are the declarations that would make it harmless, one each line; nil
	// if none would.
	frees []string
}

func harm(why Reason) *verdict { return &verdict{why: why} }

// onlyRun reports whether nothing is harmful before the statement runs. The planner
// evaluates functions that are STABLE or IMMUTABLE, no others.
func (v *verdict) onlyRun() bool { return v == nil || v.run }

// differs is the verdict of what only reads, but not the same on every server.
func differs(why Reason) *verdict { return &verdict{why: why, mild: true} }

// and joins two verdicts: the first reason stands, and what frees must free from
// both.
func (v *verdict) and(w *verdict) *verdict {
	switch {
	case v == nil:
		return w
	case w == nil || v == w:
		return v
	}
	out := &verdict{why: v.why, mild: v.mild && w.mild, run: v.run && w.run}
	if v.frees != nil && w.frees != nil {
		out.frees = union(v.frees, w.frees)
	}
	return out
}

func union(a, b []string) []string {
	out := append([]string(nil), a...)
next:
	for _, x := range b {
		for _, y := range a {
			if x == y {
				continue next
			}
		}
		out = append(out, x)
	}
	return out
}

// via says through what a verdict was reached.
func (v *verdict) via(what string) *verdict {
	if v == nil {
		return nil
	}
	why := v.why
	if !strings.Contains(string(why), ", through ") {
		why += ", through " + clean(what)
	}
	return &verdict{why: why, mild: v.mild, run: v.run, frees: v.frees}
}

// graph works out the verdicts of a database's objects from each other. It lives
// only while a Catalog is made.
type graph struct {
	o           *Objects
	read, write []*regexp.Regexp

	functions map[uint32]*Function
	operators map[uint32]uint32 // function by operator
	relations map[uint32]*Relation
	types     map[uint32]*Type
	named     map[string][]member // users' functions that are not harmless by themselves, by name
	tables    map[string][]*Relation
	builtins  map[string]*verdict // PostgreSQL's own functions that are not on the list of pure ones

	done map[uint32]*verdict // of functions, by OID
	rels map[uint32]*verdict // of relations; present and nil while they are worked out
	doms map[uint32]*verdict // of types
}

func newGraph(o *Objects, read, write []*regexp.Regexp) *graph {
	g := &graph{
		o: o, read: read, write: write,
		functions: make(map[uint32]*Function, len(o.Functions)+len(o.Builtins)),
		operators: make(map[uint32]uint32, len(o.Operators)),
		relations: make(map[uint32]*Relation, len(o.Relations)),
		types:     make(map[uint32]*Type, len(o.Types)),
		named:     make(map[string][]member),
		tables:    make(map[string][]*Relation, len(o.Relations)),
		builtins:  make(map[string]*verdict),
		done:      make(map[uint32]*verdict),
		rels:      make(map[uint32]*verdict),
		doms:      make(map[uint32]*verdict),
	}
	for i := range o.Functions {
		f := &o.Functions[i]
		g.functions[f.OID] = f
		if f.Kind != 'p' && !matches(g.read, f) && (f.Volatile == 'v' || matches(g.write, f)) {
			g.named[f.Name] = append(g.named[f.Name], member{f.Schema, g.declared(f)})
		}
	}
	for i := range o.Builtins {
		g.builtin(&o.Builtins[i])
	}
	for _, op := range o.Operators {
		g.operators[op.OID] = op.Function
	}
	for i := range o.Relations {
		r := &o.Relations[i]
		g.relations[r.OID] = r
		g.tables[r.Name] = append(g.tables[r.Name], r)
	}
	for i := range o.Types {
		g.types[o.Types[i].OID] = &o.Types[i]
	}
	return g
}

// matches reports whether one of the patterns is the function's name, with its
// schema or without.
func matches(patterns []*regexp.Regexp, f *Function) bool {
	for _, p := range patterns {
		if p.MatchString(f.Name) || p.MatchString(f.Schema+"."+f.Name) {
			return true
		}
	}
	return false
}

// builtin judges one of PostgreSQL's own functions: by the lists, and where these
// do not know it only what is IMMUTABLE is harmless. Functions of one name are
// one here.
func (g *graph) builtin(f *Function) {
	g.functions[f.OID] = f
	var v *verdict
	switch kind := functionKinds[f.Name]; {
	case matches(g.write, f):
		v = harm("function of write_functions: " + clean(f.Name))
	case matches(g.read, f) && kind == functionUnknown:
	case kind == functionServer, kind == functionSession:
		v = differs("answer differs by server: " + clean(f.Name))
	case kind != functionUnknown:
		v = harm("writes, locks or leaves state: " + clean(f.Name))
	case pureFunctions[f.Name] || sampleMethods[f.Name] || rowMakers[f.Name]:
	case f.Volatile != 'i' && f.Schema == "pg_catalog" || f.Volatile == 'v':
		v = harm("function not known to be pure: " + clean(f.Name))
	}
	g.done[f.OID] = v
	if f.Name == "pg_my_temp_schema" {
		// Where a view asks, as those of information_schema do, it is to show a
		// session its own temporary tables: one that has any stays with its server.
		g.done[f.OID] = nil
	}
	if f.Schema != "pg_catalog" {
		return
	}
	if old, ok := g.builtins[f.Name]; !ok || old == nil {
		g.builtins[f.Name] = v
	}
}

// declared is the verdict of a user's function by what its declaration says.
func (g *graph) declared(f *Function) *verdict {
	if matches(g.write, f) {
		return harm("function of write_functions: " + clean(f.Schema+"."+f.Name))
	}
	v := &verdict{why: "function is VOLATILE: " + clean(f.Schema+"."+f.Name), run: true}
	if f.Signature != "" && !f.Extension && (f.Body == nil || !f.Body.Writes && f.Body.Effects == 0 && f.Body.Differs == "") {
		v.frees = []string{"ALTER FUNCTION " + f.Signature + " STABLE"}
	}
	return v
}

// function returns the verdict of a function.
func (g *graph) function(oid uint32) *verdict {
	if v, ok := g.done[oid]; ok {
		return v
	}
	f := g.functions[oid]
	if f == nil {
		return harm("function not in the catalog as it was read")
	}
	g.done[oid] = nil // a function that comes back to itself adds nothing
	v := g.judge(f)
	g.done[oid] = v
	return v
}

func (g *graph) judge(f *Function) *verdict {
	if matches(g.write, f) {
		return g.declared(f)
	}
	if matches(g.read, f) {
		return nil
	}
	var v *verdict
	switch {
	case f.Kind == 'a':
		for _, oid := range g.o.Aggregates[f.OID] {
			v = v.and(g.function(oid).via(f.Name))
		}
	case f.Kind == 'p':
		v = harm("unknown code: procedure " + clean(f.Name))
	case f.Volatile == 'v':
		v = g.declared(f)
	default:
		v = g.lie(f)
	}
	for _, t := range f.Domains {
		v = v.and(g.domain(t).via(f.Name))
	}
	return v
}

// lie looks for what shows that a function which is declared STABLE or IMMUTABLE
// does not do what a standby can do as well.
func (g *graph) lie(f *Function) *verdict {
	if f.Tree != nil {
		return g.tree(*f.Tree).via(f.Name)
	}
	b := f.Body
	if b == nil {
		return nil
	}
	what := "declared " + declaration(f.Volatile) + ", but "
	switch {
	case b.Full:
		return harm("too long to be looked through: " + clean(f.Schema+"."+f.Name))
	case b.Differs != "":
		return harm(Reason(what) + "calls " + clean(b.Differs) + ": " + clean(f.Name))
	case b.Effects != 0:
		return harm(Reason(what) + "changes the session: " + clean(f.Name))
	}
	var v *verdict
	anywhere := new(Path) // its search_path is its caller's
	for _, call := range b.Calls {
		known, w := found(g.named[call.Name], call.Schema, anywhere)
		v = v.and(w.via(f.Name))
		if !known && g.builtins[call.Name] != nil && (call.Schema == "" || call.Schema == "pg_catalog") {
			return harm(Reason(what) + "calls " + clean(call.Name) + ": " + clean(f.Name))
		}
	}
	for _, rel := range b.Reads {
		for _, r := range g.tables[rel.Name] {
			if rel.Schema == "" || rel.Schema == r.Schema {
				v = v.and(g.relation(r.OID).via(f.Name))
			}
		}
	}
	return v
}

func declaration(volatile byte) string {
	if volatile == 'i' {
		return "IMMUTABLE"
	}
	return "STABLE"
}

// operator returns the verdict of an operator by its OID.
func (g *graph) operator(oid uint32) *verdict {
	if oid < FirstUser {
		return nil // all of PostgreSQL's own are STABLE or IMMUTABLE
	}
	return g.function(g.operators[oid])
}

// tree returns the verdict of a stored expression.
func (g *graph) tree(t Tree) *verdict {
	if t.Harm != "" {
		return harm(t.Harm)
	}
	var v *verdict
	for _, oid := range t.Functions {
		v = v.and(g.function(oid))
	}
	for _, oid := range t.Operators {
		v = v.and(g.operator(oid))
	}
	for _, oid := range t.Relations {
		v = v.and(g.relation(oid))
	}
	for _, oid := range t.Domains {
		v = v.and(g.domain(oid))
	}
	return v
}

// plainTable is the verdict of a relation by its own row in the catalog.
func plainTable(r *Relation) *verdict {
	switch {
	case r.Persistence == 'u':
		return differs("unlogged table, which a standby does not have: " + clean(r.Name))
	case r.Persistence != 'p':
		return differs("temporary: " + clean(r.Name))
	case r.Kind == 'f':
		return differs("foreign table: " + clean(r.Name))
	case r.Kind == 'S':
		return differs("sequence, which a standby shows ahead: " + clean(r.Name))
	}
	return nil
}

// relation returns the verdict of a relation that is read.
func (g *graph) relation(oid uint32) *verdict {
	if v, ok := g.rels[oid]; ok {
		return v
	}
	r := g.relations[oid]
	if r == nil {
		return harm("relation not in the catalog as it was read")
	}
	g.rels[oid] = nil // a view or policy that comes back to itself adds nothing
	v := plainTable(r)
	if r.Kind == 'v' {
		rules := g.o.Rules[oid]
		if len(rules) == 0 {
			v = v.and(harm("view without a rule: " + clean(r.Name)))
		}
		for _, t := range rules {
			v = v.and(g.tree(t).via(r.Name))
		}
	}
	if r.RowSecurity {
		for _, t := range g.o.Policies[oid] {
			v = v.and(g.tree(t).via("a policy of " + r.Name))
		}
	}
	for _, child := range g.o.Children[oid] {
		v = v.and(g.relation(child))
	}
	g.rels[oid] = v
	return v
}

// Guarded returns the domains whose checks are not harmless. Where there are any,
// Rows must be known for NewCatalog.
func (o *Objects) Guarded(over Overrides) []uint32 {
	g := newGraph(o, over.Read, over.Write)
	var out []uint32
	for i := range o.Types {
		if t := &o.Types[i]; t.Kind == 'd' && g.domain(t.OID) != nil {
			out = append(out, t.OID)
		}
	}
	return out
}

// domain returns the verdict of making a value of a type.
func (g *graph) domain(oid uint32) *verdict {
	if oid < FirstUser {
		return nil
	}
	if v, ok := g.doms[oid]; ok {
		return v
	}
	g.doms[oid] = nil
	t := g.types[oid]
	if t == nil {
		return nil // an array, a table's row, or a type without checks
	}
	var v *verdict
	if t.Kind == 'd' {
		for _, tree := range g.o.Checks[oid] {
			v = v.and(g.tree(tree).via("domain " + t.Name))
		}
		v = v.and(g.domain(t.Base))
	}
	g.doms[oid] = v
	return v
}
