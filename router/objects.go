package router

// Objects is what was read of one database's catalog, in one transaction. The
// monitor fills it in and NewCatalog makes a Catalog of it. OIDs below FirstUser are
// PostgreSQL's own objects.
type Objects struct {
	Functions  []Function          // of users and extensions
	Builtins   []Function          // PostgreSQL's own
	Aggregates map[uint32][]uint32 // the functions behind an aggregate, by its OID
	Operators  []Operator
	Casts      []Cast
	Types      []Type
	Relations  []Relation
	Children   map[uint32][]uint32 // inheritance and partitions: OIDs by that of the parent
	Rules      map[uint32][]Tree   // ON SELECT, by the view's OID
	Policies   map[uint32][]Tree   // by the table's OID
	Checks     map[uint32][]Tree   // by the domain's OID
	Comparing  []uint32            // functions of users in operator classes of B-trees and hashes
	Rows       map[uint32]bool     // row types of which a column, at any depth, is of a type that Guarded has named
	Paths      []PathSetting

	// ServerPath is the search_path of the server's configuration; Known is false
	// where the monitor's role cannot tell.
	ServerPath string
	Known      bool
}

// FirstUser is the first OID of an object that initdb has not made; see
// FirstNormalObjectId in PostgreSQL's transam.h.
const FirstUser = 16384

// Function is a row of pg_proc.
type Function struct {
	OID       uint32
	Schema    string
	Name      string
	Signature string   // types of its arguments, for ALTER FUNCTION; "" where no advice is given
	Least     int      // arguments that a call must have
	Most      int      // and may have; anyArgs: any number
	Kind      byte     // prokind: f, p, a or w
	Volatile  byte     // provolatile: i, s or v
	Row       bool     // may be called as a column of a row: row.name
	Extension bool     // belongs to an extension
	Domains   []uint32 // types of its arguments that are users'
	Body      *Body    // of a function in SQL or PL/pgSQL
	Tree      *Tree    // of a function in SQL whose body is parsed
}

// AnyArgs as Function.Most: a variadic function.
const AnyArgs = anyArgs

// Operator is a row of pg_operator.
type Operator struct {
	OID          uint32
	Schema, Name string
	Function     uint32
}

// Cast is a row of pg_cast that calls a function which is not PostgreSQL's own.
type Cast struct {
	Schema, Target string // the type that it makes
	Function       uint32
	Implicit       bool // it happens without being written
}

// Type is a row of pg_type, but for arrays and the types of tables' rows.
type Type struct {
	OID          uint32
	Schema, Name string
	Kind         byte   // typtype: b, c, d, e, m or r
	Base         uint32 // of a domain
}

// Relation is a row of pg_class that can be read.
type Relation struct {
	OID          uint32
	Schema, Name string
	Kind         byte // relkind: r, p, v, m, f or S
	Persistence  byte // relpersistence: p or u
	RowSecurity  bool
	RowType      uint32
}

// PathSetting is a search_path set for a role, a database or both.
type PathSetting struct {
	Role     string // "": every role
	Database bool   // for this database; otherwise for all
	Value    string
}
