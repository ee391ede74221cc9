package router

import (
	"strconv"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// ownPrefix starts the settings that belong to the proxy.
const ownPrefix = "pgproxy."

// planShow: a setting's value belongs to a session or a server, except the few
// that are the same all over a cluster.
func planShow(n *pg.VariableShowStmt) *Plan {
	name := strings.ToLower(n.GetName())
	if own, ok := strings.CutPrefix(name, ownPrefix); ok {
		return &Plan{Class: ClassAny, Reason: reasonOwn, Tag: "SHOW", Proxy: &Command{Show: true, Name: own}}
	}
	if clusterSettings[name] {
		return &Plan{Class: ClassRead, Reason: reasonReadShow, Tag: "SHOW"}
	}
	return primary("session: SHOW "+clean(name), "SHOW", 0)
}

// planSet is for SET and RESET of every kind.
func planSet(n *pg.VariableSetStmt) *Plan {
	tag := "SET"
	name := strings.ToLower(n.GetName())
	local := n.GetIsLocal()
	v := Var{Name: name, Local: local}
	switch n.GetKind() {
	case pg.VariableSetKind_VAR_RESET_ALL:
		return &Plan{
			Reason: "session: RESET ALL", Tag: "RESET", Effects: EffectSet,
			Vars: []Var{{Reset: true, All: true}},
		}
	case pg.VariableSetKind_VAR_SET_MULTI:
		return planSetMulti(n)
	case pg.VariableSetKind_VAR_RESET:
		tag = "RESET"
		v.Reset = true
	case pg.VariableSetKind_VAR_SET_DEFAULT:
		v.Reset = true
	case pg.VariableSetKind_VAR_SET_VALUE:
		value, ok := settingValue(name, n.GetArgs())
		if !ok && strings.HasPrefix(name, ownPrefix) {
			return &Plan{Reason: reasonOwn, Tag: tag, Bad: &Refusal{"22023", "invalid value for parameter \"" + name + "\": want a word or a string"}}
		}
		if !ok {
			p := primary("session: SET "+clean(name), tag, setEffect(local))
			p.Settings = []string{name}
			return p
		}
		v.Value = value
	default:
		return primary("session: SET "+clean(name), tag, EffectSet|EffectOther)
	}
	if own, ok := strings.CutPrefix(name, ownPrefix); ok {
		return &Plan{
			Class: ClassAny, Reason: reasonOwn, Tag: tag,
			Proxy: &Command{Name: own, Value: v.Value, Reset: v.Reset, Local: local},
		}
	}
	if transactionSettings[name] {
		v.Local = true // these end with the transaction however they are set
	}
	if name == "seed" {
		// Not a value but an event: random() goes on from here.
		return primary("session: "+Reason(tag)+" seed", tag, EffectSet|EffectOther)
	}
	p := primary("session: "+Reason(tag)+" "+clean(name), tag, setEffect(v.Local))
	p.Vars, p.Settings = []Var{v}, []string{name}
	if name == "search_path" && tempFirst(v.Value) {
		p.Effects |= EffectTemp // from here on tables are made in pg_temp
	}
	return p
}

// tempFirst tells whether a search_path may make pg_temp the schema in which
// objects are made. Schemas in front of it may not exist, but for three.
func tempFirst(path string) bool {
	for name := range strings.SplitSeq(path, ", ") {
		switch {
		case isTempSchema(name):
			return true
		case name == "pg_catalog", name == "public", name == "information_schema":
			return false
		}
	}
	return false
}

var transactionSettings = wordSet(`transaction_isolation transaction_read_only transaction_deferrable`)

func setEffect(local bool) Effect {
	if local {
		return 0
	}
	return EffectSet
}

// planSetMulti is for SET TRANSACTION and its relatives. Their Vars are the
// settings that stand behind them.
func planSetMulti(n *pg.VariableSetStmt) *Plan {
	switch n.GetName() {
	case "TRANSACTION":
		p := primary("transaction: SET TRANSACTION", "SET", 0)
		p.Vars = transactionVars(n.GetArgs(), "")
		return p
	case "SESSION CHARACTERISTICS":
		p := primary("session: SET SESSION CHARACTERISTICS", "SET", EffectSet)
		p.Vars = transactionVars(n.GetArgs(), "default_")
		for _, v := range p.Vars {
			p.Settings = append(p.Settings, v.Name)
		}
		return p
	case "TRANSACTION SNAPSHOT":
		return primary("transaction: SET TRANSACTION SNAPSHOT", "SET", 0)
	}
	return primary("session: SET "+clean(n.GetName()), "SET", EffectSet|EffectOther)
}

// transactionVars turns transaction modes into settings, in their order; those
// without a prefix are local to the transaction.
func transactionVars(modes []*pg.Node, prefix string) []Var {
	var vars []Var
	for _, m := range modes {
		d := m.GetDefElem()
		value := "off"
		switch c := d.GetArg().GetAConst(); {
		case c.GetSval() != nil:
			value = c.GetSval().GetSval()
		case c.GetIval().GetIval() != 0, c.GetBoolval().GetBoolval():
			value = "on"
		}
		vars = append(vars, Var{Name: prefix + strings.ToLower(d.GetDefname()), Value: value, Local: prefix == ""})
	}
	return vars
}

// quotedLists are the settings whose value is a list of names, each quoted
// where a name needs it.
var quotedLists = wordSet(`
	local_preload_libraries search_path session_preload_libraries shared_preload_libraries
	temp_tablespaces unix_socket_directories`)

// settingValue gives the right side of a SET in the form that set_config
// takes; false when only the server can tell.
func settingValue(name string, args []*pg.Node) (string, bool) {
	var b strings.Builder
	for i, a := range args {
		if i > 0 {
			b.WriteString(", ")
		}
		switch n := a.GetNode().(type) {
		case *pg.Node_AConst:
			text, ok := constText(n.AConst)
			if !ok {
				return "", false
			}
			if quotedLists[name] {
				text = quoteIdent(text)
			}
			b.WriteString(text)
		case *pg.Node_TypeCast:
			// SET TIME ZONE INTERVAL '...': hours and minutes say the same
			// whatever unit the cast names, other texts may not.
			text, ok := constText(n.TypeCast.GetArg().GetAConst())
			if !ok || !strings.Contains(text, ":") || strings.Trim(text, "+-:0123456789") != "" {
				return "", false
			}
			b.WriteString("INTERVAL '" + text + "'")
		default:
			return "", false
		}
	}
	return b.String(), true
}

func constText(c *pg.A_Const) (string, bool) {
	switch v := c.GetVal().(type) {
	case *pg.A_Const_Sval:
		return v.Sval.GetSval(), true
	case *pg.A_Const_Fval:
		return v.Fval.GetFval(), true
	case *pg.A_Const_Ival:
		return strconv.Itoa(int(v.Ival.GetIval())), true
	case *pg.A_Const_Boolval:
		return strconv.FormatBool(v.Boolval.GetBoolval()), true
	}
	return "", false
}

// quoteIdent quotes a name unless it is plain: lower case letters, digits and
// underscores. A key word in such a list needs no quotes.
func quoteIdent(name string) string {
	plain := name != ""
	for i, c := range []byte(name) {
		if c != '_' && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			plain = false
		}
	}
	if plain {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}
