package monitor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/router"
)

// maxRows bounds each answer of a reading. A catalog that has more of a kind is
// not read, and nothing is proved from it.
const maxRows = 500_000

var (
	errNotPrimary = errors.New("the server is not the primary any more")
	errTooLarge   = fmt.Errorf("the catalog has more than %d objects of one kind", maxRows)
)

// reading reads the catalog once, in one transaction.
type reading struct {
	ctx    context.Context
	conn   *pgconn.PgConn
	memory *memory
	sum    uint64 // of all rows that were read, in whatever order
	o      router.Objects
	err    error // the first one; after it nothing is asked
}

// memory is what a reader keeps from one reading to the next, so that only what
// has changed is read again.
type memory struct {
	seed     maphash.Seed
	version  string // of the server that builtins are of
	builtins []router.Function
	bodies   map[uint32]rememberedBody
	trees    map[string]map[uint32]rememberedTree // by question
}

type rememberedBody struct {
	version string
	body    *router.Body
	tree    *router.Tree
}

type rememberedTree struct {
	version string
	tree    router.Tree
}

func newMemory() *memory {
	return &memory{
		seed: maphash.MakeSeed(), bodies: make(map[uint32]rememberedBody),
		trees: make(map[string]map[uint32]rememberedTree),
	}
}

// readCatalog returns the objects of the connection's database and a sum that is
// the same while nothing changes.
func readCatalog(ctx context.Context, conn *pgconn.PgConn, m *memory, over router.Overrides) (*router.Objects, uint64, error) {
	r := &reading{ctx: ctx, conn: conn, memory: m}
	r.run(beginReading)
	r.session()
	r.run(boundReading)
	r.builtins()
	r.functions()
	r.others()
	r.o.Rules = r.trees(askRules, askRuleTexts)
	r.o.Policies = r.trees(askPolicies, askPolicyTexts)
	r.o.Checks = r.trees(askChecks, askCheckTexts)
	r.rows(over)
	r.run(endReading)
	if r.err != nil {
		return nil, 0, r.err
	}
	return &r.o, r.sum, nil
}

func (r *reading) run(sql string) {
	if r.err == nil {
		_, r.err = r.conn.Exec(r.ctx, sql).ReadAll()
	}
}

// each calls f with each row of an answer; the values are valid until it returns.
// NULL is nil. What is counted says whether the rows are a part of the sum.
func (r *reading) each(sql string, counted bool, f func(v row)) {
	if r.err != nil {
		return
	}
	rows := r.conn.ExecParams(r.ctx, sql, nil, nil, nil, nil)
	n := 0
	for rows.NextRow() {
		if n++; n > maxRows {
			r.err = errTooLarge
			break
		}
		values := rows.Values()
		if counted {
			r.count(sql, values)
		}
		f(values)
	}
	if _, err := rows.Close(); r.err == nil && err != nil {
		r.err = fmt.Errorf("reading the catalog: %w", err)
	}
}

// count adds one row to the sum.
func (r *reading) count(sql string, v row) {
	var h maphash.Hash
	h.SetSeed(r.memory.seed)
	_, _ = h.WriteString(sql) // never fails
	for _, value := range v {
		var length [8]byte
		binary.LittleEndian.PutUint64(length[:], uint64(len(value)))
		_, _ = h.Write(length[:])
		_, _ = h.Write(value)
	}
	r.sum += h.Sum64()
}

// row is one row in text format.
type row [][]byte

func (v row) text(i int) string { return string(v[i]) }
func (v row) true(i int) bool   { return string(v[i]) == "t" }
func (v row) byte(i int) byte {
	if len(v[i]) == 0 {
		return 0
	}
	return v[i][0]
}

func (v row) oid(i int) uint32 {
	n, _ := strconv.ParseUint(string(v[i]), 10, 32)
	return uint32(n)
}

func (v row) number(i int) int {
	n, _ := strconv.Atoi(string(v[i]))
	return n
}

func (r *reading) session() {
	r.each(askSession, true, func(v row) {
		if v.true(0) {
			r.err = errNotPrimary
		}
		switch v.text(2) {
		case "default", "configuration file", "command line", "environment variable":
			r.o.ServerPath, r.o.Known = v.text(1), true
		}
	})
}

// builtins reads PostgreSQL's own functions, once for each version of it.
func (r *reading) builtins() {
	version := r.conn.ParameterStatus("server_version")
	if version != r.memory.version || r.memory.builtins == nil {
		r.memory.builtins = nil
		r.each(askBuiltins, false, func(v row) {
			r.memory.builtins = append(r.memory.builtins, router.Function{
				OID: v.oid(0), Schema: v.text(1), Name: v.text(2), Kind: v.byte(3), Volatile: v.byte(4), Most: router.AnyArgs,
			})
		})
		r.memory.version = version
	}
	r.o.Builtins = r.memory.builtins
	r.count(askBuiltins, row{[]byte(version)})
}

// functions reads the users' functions, and the bodies that are new.
func (r *reading) functions() {
	bodies := make(map[uint32]rememberedBody)
	var fresh []uint32
	var coded []int // indices of those with a body
	r.each(askFunctions, true, func(v row) {
		f := router.Function{
			OID: v.oid(0), Schema: v.text(1), Name: v.text(2), Kind: v.byte(3), Volatile: v.byte(4),
			Least: v.number(5), Most: v.number(6), Extension: v.true(8), Signature: v.text(10),
		}
		f.Row = v.true(7) && f.Least <= 1 && (f.Most < 0 || f.Most >= 1)
		for t := range strings.FieldsSeq(v.text(9)) {
			if n, err := strconv.ParseUint(t, 10, 32); err == nil && n >= router.FirstUser {
				f.Domains = append(f.Domains, uint32(n))
			}
		}
		if v.true(11) {
			version := v.text(12) + v.text(13)
			if known, ok := r.memory.bodies[f.OID]; ok && known.version == version {
				bodies[f.OID] = known
			} else {
				bodies[f.OID] = rememberedBody{version: version}
				fresh = append(fresh, f.OID)
			}
			coded = append(coded, len(r.o.Functions))
		}
		r.o.Functions = append(r.o.Functions, f)
	})
	ask := askBodies
	if major, _, _ := strings.Cut(r.conn.ParameterStatus("server_version"), "."); len(major) < 2 || major < "14" {
		ask = askOldBodies
	}
	r.texts(ask, fresh, func(v row) {
		b := bodies[v.oid(0)]
		switch {
		case v[2] != nil:
			t := router.ScanTree(v.text(2))
			b.tree = &t
		case v[1] == nil:
			b.body = &router.Body{Full: true}
		default:
			scanned := router.ScanBody(v.text(1))
			b.body = &scanned
		}
		bodies[v.oid(0)] = b
	})
	for _, i := range coded {
		f := &r.o.Functions[i]
		f.Body, f.Tree = bodies[f.OID].body, bodies[f.OID].tree
	}
	r.memory.bodies = bodies
}

// texts asks for the rows of these OIDs, some at a time. They are no part of the
// sum: their versions are.
func (r *reading) texts(ask string, oids []uint32, f func(v row)) {
	const some = 500
	for len(oids) > 0 {
		n := min(some, len(oids))
		r.each(ask+"('{"+oidList(oids[:n])+"}'::pg_catalog.oid[])", false, f)
		oids = oids[n:]
	}
}

// trees reads stored expressions, by the OID of what they belong to.
func (r *reading) trees(ask, askTexts string) map[uint32][]router.Tree {
	type place struct{ owner, oid uint32 }
	var places []place
	var fresh []uint32
	old, now := r.memory.trees[ask], make(map[uint32]rememberedTree)
	r.each(ask, true, func(v row) {
		oid, version := v.oid(1), v.text(2)+v.text(3)
		places = append(places, place{v.oid(0), oid})
		if known, ok := old[oid]; ok && known.version == version {
			now[oid] = known
			return
		}
		now[oid] = rememberedTree{version, router.Tree{Harm: "an expression too long to be looked through"}}
		fresh = append(fresh, oid)
	})
	r.texts(askTexts, fresh, func(v row) {
		if t, ok := now[v.oid(0)]; ok && v[1] != nil {
			t.tree = router.ScanTree(v.text(1))
			now[v.oid(0)] = t
		}
	})
	if r.err != nil {
		return nil
	}
	r.memory.trees[ask] = now
	out := make(map[uint32][]router.Tree)
	for _, p := range places {
		out[p.owner] = append(out[p.owner], now[p.oid].tree)
	}
	return out
}

// rows reads which types of rows have columns of a domain whose checks are not
// harmless.
func (r *reading) rows(over router.Overrides) {
	if r.err != nil {
		return
	}
	guarded := r.o.Guarded(over)
	if len(guarded) == 0 {
		return
	}
	r.o.Rows = make(map[uint32]bool)
	r.each(fmt.Sprintf(askRows, oidList(guarded)), true, func(v row) { r.o.Rows[v.oid(0)] = true })
}

// oidList writes OIDs as the elements of an array.
func oidList(oids []uint32) string {
	var b strings.Builder
	for i, oid := range oids {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(uint64(oid), 10))
	}
	return b.String()
}

// others reads what needs no second question.
func (r *reading) others() {
	o := &r.o
	o.Aggregates, o.Children = make(map[uint32][]uint32), make(map[uint32][]uint32)
	r.each(askAggregates, true, func(v row) {
		for i := 1; i < len(v); i++ {
			if f := v.oid(i); f != 0 {
				o.Aggregates[v.oid(0)] = append(o.Aggregates[v.oid(0)], f)
			}
		}
	})
	r.each(askOperators, true, func(v row) {
		o.Operators = append(o.Operators, router.Operator{OID: v.oid(0), Schema: v.text(1), Name: v.text(2), Function: v.oid(3)})
	})
	r.each(askCasts, true, func(v row) {
		o.Casts = append(o.Casts, router.Cast{Schema: v.text(0), Target: v.text(1), Function: v.oid(2), Implicit: v.true(3)})
	})
	r.each(askTypes, true, func(v row) {
		o.Types = append(o.Types, router.Type{OID: v.oid(0), Schema: v.text(1), Name: v.text(2), Kind: v.byte(3), Base: v.oid(4)})
	})
	r.each(askRelations, true, func(v row) {
		o.Relations = append(o.Relations, router.Relation{
			OID: v.oid(0), Schema: v.text(1), Name: v.text(2), Kind: v.byte(3), Persistence: v.byte(4), RowSecurity: v.true(5), RowType: v.oid(6),
		})
	})
	r.each(askChildren, true, func(v row) {
		o.Children[v.oid(0)] = append(o.Children[v.oid(0)], v.oid(1))
	})
	r.each(askComparing, true, func(v row) { o.Comparing = append(o.Comparing, v.oid(0)) })
	r.each(askPaths, true, func(v row) {
		o.Paths = append(o.Paths, router.PathSetting{Role: v.text(0), Database: v.true(1), Value: v.text(2)})
	})
}
