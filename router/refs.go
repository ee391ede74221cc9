package router

import "slices"

// refs is what a statement refers to, by the names that stand in it, each once.
// "" as schema is an unqualified name.
type refs struct {
	functions []functionRef
	operators []name
	types     []name
	relations []relationRef
	columns   []string // x of t.x and (t).x, which may be a function's call x(t)
	many      bool     // there are more than maxRefs of a kind: the rest is not noted
	ctes      []string // while the statement is walked
}

type name struct{ schema, name string }

type functionRef struct {
	name
	args int // number, or anyArgs
}

type relationRef struct {
	name
	cte bool // there is a WITH query of this name, which it may mean
}

const (
	anyArgs = -1
	maxArgs = 1 << 10
	maxRefs = 256
)

func (r *refs) empty() bool {
	return len(r.functions)+len(r.operators)+len(r.types)+len(r.relations)+len(r.columns) == 0
}

func (r *refs) function(schema, fn string, args int) {
	r.functions = note(r, r.functions, functionRef{name{schema, fn}, args})
}

func (r *refs) operator(schema, op string) { r.operators = note(r, r.operators, name{schema, op}) }

func (r *refs) typeName(schema, typ string) { r.types = note(r, r.types, name{schema, typ}) }

func (r *refs) relation(schema, rel string) {
	r.relations = note(r, r.relations, relationRef{name: name{schema, rel}})
}

func (r *refs) column(col string) {
	if col != "" {
		r.columns = note(r, r.columns, col)
	}
}

// note appends x unless it is there, or there are too many.
func note[T comparable](r *refs, list []T, x T) []T {
	switch {
	case slices.Contains(list, x):
		return list
	case len(list) >= maxRefs:
		r.many = true
		return list
	}
	return append(list, x)
}

// settle marks the relations that may be WITH queries.
func (r *refs) settle() {
	ctes := make(map[string]bool, len(r.ctes))
	for _, c := range r.ctes {
		ctes[c] = true
	}
	for i := range r.relations {
		ref := &r.relations[i]
		ref.cte = ref.schema == "" && ctes[ref.name.name]
	}
	r.ctes = nil
}

// size is the memory that they take, in bytes, by estimate.
func (r *refs) size() int {
	n := 0
	for i := range r.functions {
		n += 56 + r.functions[i].size()
	}
	for i := range r.relations {
		n += 56 + r.relations[i].size()
	}
	for _, list := range [][]name{r.operators, r.types} {
		for _, x := range list {
			n += 48 + x.size()
		}
	}
	for _, c := range r.columns {
		n += 32 + len(c)
	}
	return n
}

func (n name) size() int { return len(n.schema) + len(n.name) }
