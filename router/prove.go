package router

import (
	"strings"
	"sync"
	"sync/atomic"
)

// open is the part of a plan that only a catalog can decide.
type open struct {
	// Set at construction.
	refs
	hard    Reason // it stays on the primary whatever the catalog says; "" if it may be proved
	sure    Effect // effects that no catalog takes away
	prefix  Reason // of the reason
	planned bool   // it is planned and not run: no effects

	// Atomic: what has been proved, the newest last.
	proofs atomic.Pointer[[]*proof]
}

// proof is one plan under one search_path of one database, while its catalog
// stays as it is.
type proof struct {
	path  *Path
	plan  *Plan
	frees []string
	hits  atomic.Uint64
}

// maxProofs is how many proofs are kept for one shape, proofSize what they take,
// in bytes, by estimate.
const (
	maxProofs = 4
	proofSize = 256
)

const (
	reasonProved Reason = "read: proved from the catalog"
	reasonUnread Reason = "catalog not read yet, or not since the last change"
)

// unread is the path of all databases whose catalog is not known at the moment.
var unread = new(Path)

// Prover proves plans from the catalog of one database. The monitor feeds it. Any
// number of goroutines may use it; Prove takes no lock and allocates nothing where
// the proof is known.
type Prover struct {
	// Set at construction.
	database string
	kicks    chan struct{}

	// Atomic.
	on         atomic.Bool
	catalog    atomic.Pointer[Catalog]
	generation atomic.Uint64
	begun      atomic.Int64 // when the reading of the catalog in force began, Nanotime
	since      atomic.Int64 // when a reading first found it as it is
	changed    atomic.Int64 // when it was last heard that the catalog changes

	// Guarded by mu.
	mu    sync.Mutex
	paths map[pathKey]*Path
}

type pathKey struct {
	login, role, value string
	set                bool
}

// maxPaths bounds the search_paths that are told apart in one database.
const maxPaths = 1024

// NewProver returns a Prover for an entry of [databases]. It is off.
func NewProver(database string) *Prover {
	return &Prover{database: database, kicks: make(chan struct{}, 1), paths: make(map[pathKey]*Path)}
}

// Switch turns proving on or off. While it is off plans are what their text says;
// while it is on and there is no catalog, nothing is proved.
func (pr *Prover) Switch(on bool) { pr.on.Store(on) }

// On reports whether it proves anything.
func (pr *Prover) On() bool { return pr != nil && pr.on.Load() }

// Learn takes over a catalog whose reading began at a Nanotime. same says that
// nothing has changed since the one before, so that all proofs hold.
func (pr *Prover) Learn(c *Catalog, begun, now int64, same bool) {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	if !same || pr.catalog.Load() == nil {
		pr.catalog.Store(c)
		pr.generation.Store(generations.Add(1))
		pr.since.Store(now)
		clear(pr.paths)
	}
	pr.begun.Store(begun)
}

// generations counts the catalogs of all databases.
var generations atomic.Uint64

// Changed says that the catalog is changing, or has just changed: until it has
// been read anew nothing is proved. It asks for that when ended is true.
func (pr *Prover) Changed(now int64, ended bool) {
	if pr == nil {
		return
	}
	for {
		old := pr.changed.Load()
		if old >= now || pr.changed.CompareAndSwap(old, now) {
			break
		}
	}
	if ended {
		pr.Refresh()
	}
}

// Refresh asks for a new reading of the catalog soon.
func (pr *Prover) Refresh() {
	if pr == nil {
		return
	}
	select {
	case pr.kicks <- struct{}{}:
	default:
	}
}

// Kicks is where Changed and Refresh ask.
func (pr *Prover) Kicks() <-chan struct{} { return pr.kicks }

// Since returns the moment from which on a server must have replayed everything
// to agree with the proofs; 0 while there is no catalog.
func (pr *Prover) Since() int64 {
	if pr == nil {
		return 0
	}
	return pr.since.Load()
}

// Changing reports whether the catalog has changed since it was read, as far as is
// known.
func (pr *Prover) Changing() bool { return pr.changed.Load() >= pr.begun.Load() }

// Path returns what unqualified names mean to a session: login is the role that
// its server connections log in as, role the one that it has now, value its
// search_path if it has set one. It is valid until Stale says otherwise.
func (pr *Prover) Path(login, role, value string, set bool) *Path {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	key := pathKey{login, role, value, set}
	if p := pr.paths[key]; p != nil {
		return p
	}
	c := pr.catalog.Load()
	if c == nil {
		return unread
	}
	if len(pr.paths) > maxPaths {
		key = pathKey{} // not known
		if p := pr.paths[key]; p != nil {
			return p
		}
	}
	p := &Path{owner: pr, generation: pr.generation.Load()}
	if key != (pathKey{}) {
		known := true
		if !set {
			value, known = c.defaultPath(login)
		}
		if known {
			p.schemas, _ = schemasOf(value, role)
		}
	}
	pr.paths[key] = p
	return p
}

// AnyPath returns the path of a session whose search_path is not known.
func (pr *Prover) AnyPath() *Path { return pr.Path("", "", "", false) }

// Stale reports whether a path is of another catalog than the one in force.
func (pr *Prover) Stale(p *Path) bool { return p == nil || p.generation != pr.generation.Load() }

// Prove returns the plan that holds in this database with this search_path: p
// itself, or one that was made of it. A nil Prover proves nothing.
func (pr *Prover) Prove(p *Plan, path *Path) *Plan {
	o := p.open
	if o == nil {
		return p
	}
	switch {
	case pr == nil || !pr.on.Load():
		return p
	case pr.Changing() || pr.Stale(path):
		path = unread
	}
	if list := o.proofs.Load(); list != nil {
		for _, known := range *list {
			if known.path == path {
				known.hits.Add(1)
				return known.plan
			}
		}
	}
	if path == unread {
		return o.remember(&proof{path: path, plan: p.decided(harm(reasonUnread), 0, true)})
	}
	bad, effects := pr.catalog.Load().judge(o, path)
	if pr.Stale(path) { // the catalog was replaced in the meantime
		return pr.Prove(p, nil)
	}
	pf := &proof{path: path, plan: p.decided(bad, effects, false)}
	if bad != nil && o.hard == "" {
		pf.frees = bad.frees
	}
	return o.remember(pf)
}

// judge looks up everything that a statement refers to.
func (c *Catalog) judge(o *open, path *Path) (bad *verdict, effects Effect) {
	bad = c.taint
	if o.many {
		bad = bad.and(harm("refers to more than can be looked up"))
	}
	for i := range o.functions {
		v, e := c.function(o.functions[i], path)
		bad = bad.and(v)
		effects |= e
	}
	for _, ref := range o.operators {
		bad = bad.and(c.operator(ref, path))
	}
	for _, ref := range o.types {
		known, v := c.typeNamed(ref, path)
		if !known {
			v = harm("type not known to be pure: " + ref.display())
		}
		bad = bad.and(v)
	}
	for _, ref := range o.relations {
		bad = bad.and(c.relation(ref, path))
	}
	for _, col := range o.columns {
		bad = bad.and(c.column(col, path))
	}
	return bad, effects
}

// decided returns the plan that a verdict makes of p.
func (p *Plan) decided(bad *verdict, effects Effect, waiting bool) *Plan {
	o, q := p.open, p.proved()
	switch {
	case o.hard != "":
		q.Reason = o.hard // what else stood in the way is gone, or does not matter
		q.Effects |= effects
		return q
	case waiting:
		q.Class, q.Reason = ClassPrimary, bad.why
		return q
	case o.planned && bad.onlyRun():
		q.Class, q.Reason = ClassRead, reasonProved
	case bad == nil && effects != 0:
		q.Class, q.Reason, q.Effects = ClassPrimary, "session state: a function that changes it", o.sure|effects
	case bad == nil:
		q.Class, q.Reason, q.Effects = ClassRead, reasonProved, o.sure
	default:
		q.Class, q.Reason, q.Effects = ClassPrimary, bad.why, o.sure|effects
		if !bad.mild {
			q.Effects |= EffectWrite
		}
	}
	if o.planned {
		q.Effects = 0
	}
	if q.Class == ClassPrimary {
		q.Reason = o.prefix + q.Reason
	}
	return q
}

// remember adds a proof, in place of the one for the same path or the oldest one,
// and returns its plan.
func (o *open) remember(pf *proof) *Plan {
	for {
		old := o.proofs.Load()
		list := make([]*proof, 0, maxProofs)
		if old != nil {
			for _, k := range *old {
				if k.path != pf.path {
					list = append(list, k)
				}
			}
		}
		if len(list) == maxProofs {
			list = append(list[:0], list[1:]...)
		}
		list = append(list, pf)
		if o.proofs.CompareAndSwap(old, &list) {
			return pf.plan
		}
	}
}

// stats copies the proofs that hold now.
func (o *open) stats() []ProofStat {
	list := o.proofs.Load()
	if list == nil {
		return nil
	}
	var out []ProofStat
	for _, k := range *list {
		pr := k.path.owner
		if pr == nil || pr.Stale(k.path) {
			continue
		}
		class, reason := k.plan.now()
		out = append(out, ProofStat{
			Database: pr.database, Class: class, Reason: reason, Frees: strings.Join(k.frees, "; "), Hits: k.hits.Load(),
		})
	}
	return out
}
