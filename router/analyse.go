package router

import (
	"bytes"
	"slices"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// The reasons that name nothing from the statement.
const (
	reasonRead       Reason = "read: only known pure functions"
	reasonReadBegin  Reason = "read: BEGIN READ ONLY"
	reasonReadShow   Reason = "read: setting of the whole cluster"
	reasonEmpty      Reason = "empty query"
	reasonOwn        Reason = "answered by the proxy"
	reasonBadHint    Reason = "hint not understood"
	reasonMixed      Reason = "pgproxy.* among several statements"
	reasonMulti      Reason = "several statements"
	reasonNoParse    Reason = "does not parse"
	reasonUnreadable Reason = "does not parse: quote or character out of place"
	reasonEncoding   Reason = "not UTF-8"
	reasonBackslash  Reason = "backslash in a plain string: its meaning depends on a setting"
	reasonTooLarge   Reason = "too large to parse"
	reasonTooDeep    Reason = "nested too deeply to parse"
	reasonBroken     Reason = "the analysis failed"
)

// analyse parses a text and says what it is. The caller has made sure that it
// is UTF-8 without a zero byte.
func analyse(text []byte) *Plan {
	deep, ok := tooDeep(text)
	switch {
	case !ok:
		return primary(reasonUnreadable, "", EffectWrite|EffectOther)
	case deep:
		return &Plan{Reason: reasonTooDeep, Effects: guessEffects(text)}
	}
	tree, err := pg.Parse(string(text))
	if err != nil {
		// Most likely the server refuses it too. If it is newer than this
		// parser it may do anything.
		return &Plan{Reason: reasonNoParse, Effects: EffectWrite | EffectOther, Unread: true}
	}
	switch len(tree.GetStmts()) {
	case 0:
		return &Plan{Class: ClassAny, Reason: reasonEmpty}
	case 1:
		p := planOf(tree.GetStmts()[0].GetStmt())
		if showsPrepared(text) {
			switch p.Use {
			case PreparedNone:
				p.Use = PreparedAll
			case PreparedMake:
				p.Inner.Use = PreparedAll
			}
		}
		p.refuseOwn()
		return p
	}
	p := &Plan{Reason: reasonMulti, Effects: EffectMulti}
	if showsPrepared(text) {
		p.Use = PreparedAll
	}
	for _, s := range tree.GetStmts() {
		one := planOf(s.GetStmt())
		p.Effects |= one.Effects
		if one.Proxy != nil {
			p.Reason, p.Bad = reasonMixed, mixed
		}
		if one.Use != PreparedNone {
			p.Use = PreparedAll
		}
		p.Settings = append(p.Settings, one.Settings...)
		p.SettingsHidden = p.SettingsHidden || one.SettingsHidden
		p.Listens = append(p.Listens, one.Listens...)
	}
	if len(p.Listens) < len(tree.GetStmts()) {
		p.Listens = nil
	}
	p.refuseOwn()
	return p
}

// refuseOwn refuses a set_config of the proxy's own parameters, which a server would
// take for its own.
func (p *Plan) refuseOwn() {
	if slices.ContainsFunc(p.Settings, func(name string) bool { return strings.HasPrefix(name, ownPrefix) }) {
		p.Class, p.Bad = ClassPrimary, ownConfig
	}
}

var ownConfig = &Refusal{"22023", "set_config does not set pgproxy.*: want SET"}

var mixed = &Refusal{"22023", "SET, RESET and SHOW of pgproxy.* must each be sent alone, not among several statements"}

// showsPrepared reports whether a text may ask which prepared statements there
// are: for the view or the function behind it.
func showsPrepared(text []byte) bool {
	return bytes.Contains(bytes.ToLower(text), []byte("pg_prepared_statement"))
}

// findings is what a walk over one statement's tree brings home.
type findings struct {
	reason  Reason // the first thing that is not proved harmless; "" if none
	effects Effect
	hard    Reason // the first one that no catalog can clear; "" if none
	sure    Effect // of those
	refs    refs
	lasting bool // a rollback may not undo all of it

	settings []string // as in Plan
	params   []int
	hidden   bool
}

// refuse notes that something is harmful whatever the catalog says, and what it
// does.
func (f *findings) refuse(why Reason, effects Effect) {
	f.doubt(why, effects)
	if f.hard == "" {
		f.hard = why
	}
	f.sure |= effects
}

// doubt notes that something is not proved harmless by its name alone, and what
// it may do. What the catalog must say of it stands in refs.
func (f *findings) doubt(why Reason, effects Effect) {
	if f.reason == "" {
		f.reason = why
	}
	f.effects |= effects
	f.lasting = true
}

// rows notes a write or a lock of rows, which a rollback undoes.
func (f *findings) rows(why Reason, effects Effect) {
	lasting := f.lasting
	f.refuse(why, effects)
	f.lasting = lasting
}

// look walks the whole tree under m.
func look(m proto.Message) findings {
	var f findings
	f.walk(m.ProtoReflect())
	f.refs.settle()
	return f
}

// walk judges m and everything below it. It goes over the fields by
// reflection: no field can be forgotten, and a node of a type that judge does
// not know is never taken for harmless.
func (f *findings) walk(m protoreflect.Message) {
	f.judge(m.Interface())
	eachChild(m, f.walk)
}

func (f *findings) judge(m proto.Message) {
	switch n := m.(type) {
	case *pg.Node, *pg.RawStmt, *pg.List, *pg.String, *pg.Integer, *pg.Float, *pg.Boolean, *pg.BitString,
		*pg.SelectStmt, *pg.WithClause, *pg.CTESearchClause, *pg.CTECycleClause,
		*pg.ResTarget, *pg.ParamRef, *pg.A_Const, *pg.A_Star, *pg.A_Indices,
		*pg.A_ArrayExpr, *pg.TypeCast, *pg.CollateClause, *pg.Alias,
		*pg.RangeSubselect, *pg.RangeFunction, *pg.RangeTableFunc, *pg.RangeTableFuncCol, *pg.ColumnDef,
		*pg.WindowDef, *pg.GroupingSet, *pg.GroupingFunc, *pg.BoolExpr, *pg.CaseWhen,
		*pg.CoalesceExpr, *pg.MinMaxExpr, *pg.NullTest, *pg.BooleanTest, *pg.RowExpr, *pg.NamedArgExpr,
		*pg.SQLValueFunction, *pg.XmlExpr, *pg.XmlSerialize,
		*pg.JsonFormat, *pg.JsonReturning, *pg.JsonValueExpr, *pg.JsonIsPredicate, *pg.JsonBehavior,
		*pg.JsonOutput, *pg.JsonArgument, *pg.JsonFuncExpr, *pg.JsonTablePathSpec, *pg.JsonTable,
		*pg.JsonTableColumn, *pg.JsonKeyValue, *pg.JsonParseExpr, *pg.JsonScalarExpr,
		*pg.JsonSerializeExpr, *pg.JsonObjectConstructor, *pg.JsonArrayConstructor,
		*pg.JsonArrayQueryConstructor, *pg.JsonAggConstructor, *pg.JsonObjectAgg, *pg.JsonArrayAgg:
		// Harmless by themselves.
	case *pg.CommonTableExpr:
		f.refs.ctes = append(f.refs.ctes, n.GetCtename())
	case *pg.ColumnRef:
		name := lastName(n.GetFields())
		if sequenceColumns[name] {
			f.doubt("may be read from a sequence, which a standby shows ahead: "+clean(name), 0)
		}
		if len(n.GetFields()) > 1 {
			f.refs.column(name)
		}
	case *pg.A_Indirection:
		for _, i := range n.GetIndirection() {
			f.refs.column(i.GetString_().GetSval())
		}
	case *pg.CaseExpr:
		if n.GetArg() != nil {
			f.refs.operator("", "=")
		}
	case *pg.JoinExpr:
		if n.GetIsNatural() || len(n.GetUsingClause()) > 0 {
			f.refs.operator("", "=")
		}
	case *pg.FuncCall:
		f.function(n)
	case *pg.RangeVar:
		f.relation(n)
	case *pg.TypeName:
		f.typeName(n)
	case *pg.A_Expr:
		switch n.GetKind() {
		case pg.A_Expr_Kind_AEXPR_BETWEEN, pg.A_Expr_Kind_AEXPR_NOT_BETWEEN,
			pg.A_Expr_Kind_AEXPR_BETWEEN_SYM, pg.A_Expr_Kind_AEXPR_NOT_BETWEEN_SYM:
			// Its name is BETWEEN.
			f.refs.operator("", ">=")
			f.refs.operator("", "<=")
		default:
			f.operator(n.GetName())
		}
	case *pg.SubLink:
		f.operator(n.GetOperName())
		if n.GetSubLinkType() == pg.SubLinkType_ANY_SUBLINK && len(n.GetOperName()) == 0 {
			f.refs.operator("", "=") // IN
		}
	case *pg.SortBy:
		f.operator(n.GetUseOp())
	case *pg.RangeTableSample:
		if name := lastName(n.GetMethod()); len(n.GetMethod()) != 1 || !sampleMethods[name] {
			f.refuse("sampling method not known to be pure: "+clean(name), EffectWrite)
		}
	case *pg.LockingClause:
		f.rows("lock: FOR "+lockStrength(n.GetStrength()), 0)
	case *pg.IntoClause:
		f.refuse("write: SELECT INTO", EffectWrite|EffectDDL|tempEffect(n))
	case *pg.InsertStmt:
		f.rows("write: INSERT", EffectWrite)
	case *pg.UpdateStmt:
		f.rows("write: UPDATE", EffectWrite)
	case *pg.DeleteStmt:
		f.rows("write: DELETE", EffectWrite)
	case *pg.MergeStmt:
		f.rows("write: MERGE", EffectWrite)
	default:
		f.refuse("not known to be harmless: "+Reason(m.ProtoReflect().Descriptor().Name()), EffectWrite)
	}
}

func lockStrength(s pg.LockClauseStrength) Reason {
	switch s {
	case pg.LockClauseStrength_LCS_FORKEYSHARE:
		return "KEY SHARE"
	case pg.LockClauseStrength_LCS_FORSHARE:
		return "SHARE"
	case pg.LockClauseStrength_LCS_FORNOKEYUPDATE:
		return "NO KEY UPDATE"
	}
	return "UPDATE"
}

// function judges a call. The functions that touch the session are known by
// their name in any schema, the pure ones only as PostgreSQL's own.
func (f *findings) function(n *pg.FuncCall) {
	name := lastName(n.GetFuncname())
	switch functionKinds[name] {
	case functionServer:
		effects := Effect(0)
		if name == listeningFunction {
			effects = EffectChannels
		}
		f.refuse("answer differs by server: "+clean(name), effects)
	case functionSession:
		f.refuse("session state: "+clean(name), sequenceEffect(name))
	case functionSequence:
		f.refuse("write: "+clean(name), EffectWrite)
	case functionSetConfig:
		f.refuse("session state: set_config", f.setConfig(n.GetArgs()))
	case functionXactLock:
		f.refuse("lock: "+clean(name), 0)
	case functionUnlock:
		f.refuse("lock: "+clean(name), EffectGiveBack)
	case functionSessionLock:
		f.refuse("lock: "+clean(name), EffectAdvisoryLock)
	case functionSessionState:
		f.refuse("session state: "+clean(name), EffectWrite|EffectOther)
	case functionCancel:
		f.refuse("ends a statement: "+clean(name), EffectWrite|EffectCancel)
	case functionTerminate:
		f.refuse("ends a session: "+clean(name), EffectWrite|EffectTerminate)
	default:
		args := len(n.GetArgs())
		if n.GetAggWithinGroup() || args > maxArgs {
			args = anyArgs
		}
		f.refs.function(schemaName(n.GetFuncname()), name, args)
		if !builtin(n.GetFuncname()) || !pureFunctions[name] {
			f.doubt("function not known to be pure: "+dotted(n.GetFuncname()), EffectWrite)
		}
	}
}

// setConfig judges the arguments of a set_config: name, value and is_local.
func (f *findings) setConfig(args []*pg.Node) Effect {
	if len(args) != 3 {
		f.hidden = true
		return EffectSet
	}
	if args[2].GetAConst().GetBoolval().GetBoolval() {
		return 0
	}
	name := args[0]
	for name.GetTypeCast() != nil {
		name = name.GetTypeCast().GetArg()
	}
	switch {
	case name.GetAConst().GetSval() != nil:
		f.settings = append(f.settings, strings.ToLower(name.GetAConst().GetSval().GetSval()))
	case name.GetParamRef() != nil:
		f.params = append(f.params, int(name.GetParamRef().GetNumber()))
	default:
		f.hidden = true
	}
	return EffectSet
}

func (f *findings) operator(name []*pg.Node) {
	if len(name) == 0 {
		return
	}
	f.refs.operator(schemaName(name), lastName(name))
	if !builtin(name) || !pureOperators[lastName(name)] {
		f.doubt("operator not known to be pure: "+dotted(name), EffectWrite)
	}
}

func (f *findings) typeName(n *pg.TypeName) {
	if n.GetPctType() {
		f.refuse("type not known to be pure: "+dotted(n.GetNames()), EffectWrite)
		return
	}
	if len(n.GetNames()) == 0 {
		return // of a column that has none, as ORDINALITY
	}
	f.refs.typeName(schemaName(n.GetNames()), lastName(n.GetNames()))
	if !builtin(n.GetNames()) || !pureTypes[lastName(n.GetNames())] {
		f.doubt("type not known to be pure: "+dotted(n.GetNames()), EffectWrite)
	}
}

// relation judges a table, view or sequence that is read.
func (f *findings) relation(n *pg.RangeVar) {
	schema, name := n.GetSchemaname(), n.GetRelname()
	if isTemp(n) {
		f.refuse("temporary: "+clean(name), 0)
		return
	}
	f.refs.relation(schema, name)
	switch {
	case strings.HasPrefix(name, "pg_") && (!pureCatalogs[name] || schema != "" && schema != "pg_catalog"),
		strings.HasPrefix(schema, "pg_") && schema != "pg_catalog":
		f.doubt("belongs to one server or session: "+clean(name), 0)
	case strings.HasSuffix(name, "_seq"):
		f.doubt("may be a sequence, which a standby shows ahead: "+clean(name), 0)
	}
}

// isTemp tells whether a relation is a temporary one by its words alone.
func isTemp(n *pg.RangeVar) bool {
	return n.GetRelpersistence() == "t" || isTempSchema(n.GetSchemaname())
}

func isTempSchema(name string) bool {
	return name == "pg_temp" || strings.HasPrefix(name, "pg_temp_")
}

// tempEffect looks in a whole tree for a temporary relation, or an object
// named in pg_temp.
func tempEffect(m proto.Message) Effect {
	found := Effect(0)
	var walk func(m protoreflect.Message)
	walk = func(m protoreflect.Message) {
		switch n := m.Interface().(type) {
		case *pg.RangeVar:
			if isTemp(n) {
				found = EffectTemp
			}
		case *pg.String:
			if isTempSchema(n.GetSval()) {
				found = EffectTemp
			}
		case *pg.A_Const:
			return
		}
		eachChild(m, walk)
	}
	walk(m.ProtoReflect())
	return found
}

// builtin tells whether a name is unqualified or in pg_catalog.
func builtin(name []*pg.Node) bool {
	return len(name) == 1 || len(name) == 2 && name[0].GetString_().GetSval() == "pg_catalog"
}

// schemaName is the schema of a name, "" if it has none.
func schemaName(name []*pg.Node) string {
	if len(name) < 2 {
		return ""
	}
	return name[len(name)-2].GetString_().GetSval()
}

func lastName(name []*pg.Node) string {
	if len(name) == 0 {
		return ""
	}
	return name[len(name)-1].GetString_().GetSval()
}

func dotted(name []*pg.Node) Reason {
	parts := make([]string, 0, len(name))
	for _, n := range name {
		parts = append(parts, n.GetString_().GetSval())
	}
	if len(parts) > 1 && parts[0] == "pg_catalog" {
		parts = parts[1:]
	}
	return clean(strings.Join(parts, "."))
}

// clean makes a client's identifier fit for one line of log or console.
func clean(name string) Reason {
	name = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' {
			return '?'
		}
		return r
	}, name)
	const most = 128
	if len(name) > most {
		name = strings.ToValidUTF8(name[:most], "") + "..."
	}
	return Reason(name)
}

// eachChild shows f the nodes right below one of a parse tree.
func eachChild(m protoreflect.Message, f func(protoreflect.Message)) {
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.Kind() != protoreflect.MessageKind:
		case field.IsList():
			for i := range v.List().Len() {
				f(v.List().Get(i).Message())
			}
		default:
			f(v.Message())
		}
		return true
	})
}
