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
// A plan is made from the text alone. It cannot know that a table is a view, a
// foreign or an unlogged table or has policies with functions of their own; that
// a column t.f is a call f(t) in disguise; or that a user's function, operator or
// cast fits the types at hand better than the builtin of the same unqualified
// name. Where such a thing writes, a standby refuses it with SQLSTATE 25006, and
// the statement runs again on the primary.
//
// # Concurrency
//
// The package starts no goroutine and does no I/O. A Router may be used by any
// number of goroutines; finding a plan takes no lock, remembering one takes the
// cache's only mutex, under which nothing is parsed. A Plan is shared by all who
// send its shape and is never changed.
package router
