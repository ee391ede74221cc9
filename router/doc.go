// Package router knows what a statement is and which server may run it.
//
// Router.Plan turns the text of a statement into a Plan: its class (primary,
// read, any), the reason in words, and what it does to the session and the
// database. The way of one text:
//
//	lexer    cuts it into tokens as PostgreSQL's own scanner does
//	shaper   writes its shape: the statement anew, with a placeholder for each
//	         literal and one element for a list of equal ones
//	cache    knows the Plan of that shape; a hit ends here, without allocation
//	analyse  parses the shape with PostgreSQL's grammar and judges every node
//	         of the tree; a node, function, operator, type or catalog relation
//	         that is on no list is taken for a write
//
// A shape is all that the analysis sees, so no literal can change a plan, and
// none is remembered. A text whose plan does depend on a literal (SET, PREPARE,
// set_config) or whose meaning depends on the server's version has no shape: it
// is analysed each time. A text that is too long, nests too deeply or does not
// parse is for the primary, with effects that assume the worst.
//
// # What a text does not tell
//
// A table may be a view, a foreign or an unlogged one, or have policies with
// functions of their own; a column t.f may be a call f(t); a user's function may fit
// better than the builtin of the same name. So a plan by the text is a draft. What
// it refers to, by the names that stand in it, is kept with it (refs.go), and a
// Prover looks that up in the Catalog of a database, under a search_path (Path):
//
//	objects   what the monitor has read of pg_catalog, in one transaction
//	graph     which objects are harmless, worked out from each other: views down to
//	          their tables and functions (nodetree), functions by declaration and
//	          by what in their text shows that it cannot be true (body)
//	catalog   the verdicts by name
//	prove     the plan that holds in a database, kept with the draft for each path
//
// A name is harmless if everything is that it may mean under the path, wherever in
// the path it stands: which schemas a role may use is not known here, nor which
// overload the types choose. What is not in the catalog may do anything. While the
// catalog is not known, or has changed since it was read, nothing that refers to
// anything is proved.
//
// Where there is no Prover the draft counts. What a standby refuses all the same,
// with SQLSTATE 25006 or a relative, runs again on the primary, and Plan.Refuse
// remembers that until the catalog changes.
//
// # Concurrency
//
// The package starts no goroutine and does no I/O. A Router may be used by any
// number of goroutines; finding a plan takes no lock, remembering one takes the
// cache's only mutex, under which nothing is parsed. Finding a proof takes no lock
// either; making one takes none, making a Path the Prover's mutex. A Plan is shared
// by all who send its shape and is never changed, but for Refuse.
package router
