package router

import (
	"regexp"
	"strings"
)

// Catalog is what the router knows of one database's catalog: for each name what
// it may stand for, and whether that is harmless on a standby. It is frozen.
type Catalog struct {
	functions map[string][]function
	operators map[string][]member
	types     map[string][]member
	relations map[string][]member
	builtins  map[string]*verdict // PostgreSQL's own functions, by name
	taint     *verdict            // of what may happen in every statement
	rows      *verdict            // of making a row of any type there is

	paths  map[string]string // default search_path by role; "" is every other one
	server bool              // the "" of paths is known
}

// member is one object of a name.
type member struct {
	schema string
	bad    *verdict
}

type function struct {
	member
	least, most int
	row         bool
	effects     Effect // on the session and the catalog
}

// Overrides are patterns of functions' names, with or without their schema: what
// Read matches is taken for harmless, what Write matches never.
type Overrides struct{ Read, Write []*regexp.Regexp }

// NewCatalog works out what is harmless. It keeps nothing of o.
func NewCatalog(o *Objects, over Overrides) *Catalog {
	g := newGraph(o, over.Read, over.Write)
	c := &Catalog{
		functions: make(map[string][]function, len(o.Functions)),
		operators: make(map[string][]member),
		types:     make(map[string][]member, len(o.Types)),
		relations: make(map[string][]member, len(o.Relations)),
		builtins:  g.builtins,
	}
	words := make(map[string]string) // schemas, each kept once
	schema := func(s string) string {
		if kept, ok := words[s]; ok {
			return kept
		}
		words[s] = s
		return s
	}
	for i := range o.Functions {
		f := &o.Functions[i]
		if f.Kind == 'p' {
			continue // no part of an expression
		}
		fn := function{
			member: member{schema(f.Schema), g.function(f.OID)}, least: f.Least, most: f.Most, row: f.Row,
		}
		if f.Body != nil {
			fn.effects = f.Body.Effects
		}
		c.functions[f.Name] = append(c.functions[f.Name], fn)
	}
	for _, op := range o.Operators {
		c.operators[op.Name] = append(c.operators[op.Name], member{schema(op.Schema), g.function(op.Function).via("operator " + op.Name)})
	}
	for i := range o.Relations {
		r := &o.Relations[i]
		c.relations[r.Name] = append(c.relations[r.Name], member{schema(r.Schema), g.relation(r.OID)})
	}
	c.addTypes(o, g, schema)
	for _, oid := range o.Comparing {
		c.taint = c.taint.and(g.function(oid).via("an operator class"))
	}
	c.addPaths(o)
	return c
}

// addTypes takes in types and casts.
func (c *Catalog) addTypes(o *Objects, g *graph, schema func(string) string) {
	var guarded *verdict // of the domains that are not harmless
	for i := range o.Types {
		if t := &o.Types[i]; t.Kind == 'd' {
			v := g.domain(t.OID)
			c.types[t.Name] = append(c.types[t.Name], member{schema(t.Schema), v})
			guarded = guarded.and(v.via("a row"))
		}
	}
	row := func(oid uint32) *verdict {
		if !o.Rows[oid] {
			return nil
		}
		c.rows = guarded
		return guarded
	}
	for i := range o.Types {
		t := &o.Types[i]
		switch t.Kind {
		case 'd':
		case 'c':
			c.types[t.Name] = append(c.types[t.Name], member{schema(t.Schema), row(t.OID)})
		default:
			c.types[t.Name] = append(c.types[t.Name], member{schema(t.Schema), nil})
		}
	}
	for i := range o.Relations {
		r := &o.Relations[i]
		c.types[r.Name] = append(c.types[r.Name], member{schema(r.Schema), row(r.RowType)})
	}
	for _, cast := range o.Casts {
		v := g.function(cast.Function).via("a cast to " + cast.Target)
		if v == nil {
			continue
		}
		c.types[cast.Target] = append(c.types[cast.Target], member{schema(cast.Schema), v})
		if cast.Implicit {
			c.taint = c.taint.and(v)
		}
	}
}

// addPaths works out the default search_path of each role: what is set for role
// and database goes before what is set for the role, the database, and the
// server; see ProcessGUCArray's callers in PostgreSQL's postinit.c.
func (c *Catalog) addPaths(o *Objects) {
	c.paths = make(map[string]string)
	rank := make(map[string]int)
	if o.Known {
		c.paths[""], c.server = o.ServerPath, true
	}
	for _, p := range o.Paths {
		r := 1
		if p.Database {
			r++
		}
		if p.Role != "" && p.Database {
			r++
		}
		if r > rank[p.Role] {
			rank[p.Role] = r
			c.paths[p.Role] = p.Value
			c.server = c.server || p.Role == ""
		}
	}
}

// defaultPath returns the search_path that a login of the role begins with.
func (c *Catalog) defaultPath(login string) (string, bool) {
	if p, ok := c.paths[login]; ok && login != "" {
		return p, true
	}
	return c.paths[""], c.server
}

// found goes over the members that a name may mean.
func found(list []member, schema string, path *Path) (any bool, bad *verdict) {
	for i := range list {
		if m := &list[i]; m.meant(schema, path) {
			any = true
			bad = bad.and(m.bad)
		}
	}
	return any, bad
}

// meant reports whether a name, with this schema or "", may mean the member.
func (m *member) meant(schema string, path *Path) bool {
	if schema != "" {
		return m.schema == schema
	}
	return path.has(m.schema)
}

// function returns the verdict of a call, and what it does to the session.
func (c *Catalog) function(ref functionRef, path *Path) (bad *verdict, effects Effect) {
	fn, known := ref.name.name, false
	if ref.schema == "" || ref.schema == "pg_catalog" {
		if v, ok := c.builtins[fn]; ok {
			known, bad = true, v
			if rowMakers[fn] {
				bad = bad.and(c.rows)
			}
		} else if pureFunctions[fn] {
			known = true // of another version of PostgreSQL; there it fails on every server
		}
	}
	for i := range c.functions[fn] {
		f := &c.functions[fn][i]
		if !f.meant(ref.schema, path) || ref.args != anyArgs && (ref.args < f.least || f.most != anyArgs && ref.args > f.most) {
			continue
		}
		known = true
		bad = bad.and(f.bad)
		effects |= f.effects
	}
	if ref.args == 1 || !known {
		// The name of a type is a cast.
		if any, v := c.typeNamed(name{ref.schema, fn}, path); any {
			known = true
			bad = bad.and(v)
		}
	}
	if !known {
		bad = harm("function not known to be pure: " + ref.display())
	}
	return bad, effects
}

// typeNamed returns the verdict of making a value of a type.
func (c *Catalog) typeNamed(ref name, path *Path) (known bool, bad *verdict) {
	known, bad = found(c.types[ref.name], ref.schema, path)
	if pureTypes[ref.name] && (ref.schema == "" || ref.schema == "pg_catalog") {
		return true, bad
	}
	if element, array := strings.CutPrefix(ref.name, "_"); array && !known {
		return c.typeNamed(name{ref.schema, element}, path)
	}
	return known, bad
}

// operator returns the verdict of an operator.
func (c *Catalog) operator(ref name, path *Path) *verdict {
	known, bad := found(c.operators[ref.name], ref.schema, path)
	if bad == nil && !known && (!pureOperators[ref.name] || ref.schema != "" && ref.schema != "pg_catalog") {
		return harm("operator not known to be pure: " + ref.display())
	}
	return bad
}

// relation returns the verdict of what is read.
func (c *Catalog) relation(ref relationRef, path *Path) *verdict {
	known, bad := found(c.relations[ref.name.name], ref.schema, path)
	if !known && !ref.cte {
		return differs("relation not in the catalog: " + ref.display())
	}
	return bad
}

// column returns the verdict of a column's name, which may be that of a function
// of a row.
func (c *Catalog) column(col string, path *Path) (bad *verdict) {
	for i := range c.functions[col] {
		if f := &c.functions[col][i]; f.row && path.has(f.schema) {
			bad = bad.and(f.bad)
		}
	}
	return bad
}

func (n name) display() Reason {
	if n.schema != "" && n.schema != "pg_catalog" {
		return clean(n.schema + "." + n.name)
	}
	return clean(n.name)
}
