package router

import (
	"slices"
	"strconv"
	"strings"
)

// Tree is what a stored expression or query of the catalog refers to: of a
// view's rule (pg_rewrite.ev_action), a policy (pg_policy.polqual), a domain's
// check (pg_constraint.conbin) or a function's body (pg_proc.prosqlbody). All are
// in the format pg_node_tree, which PostgreSQL's outfuncs.c writes: it names
// objects by OID, with implicit casts and operators resolved.
type Tree struct {
	Functions []uint32 // also aggregates, window functions and sampling methods
	Operators []uint32
	Relations []uint32
	Domains   []uint32 // types that values are checked against
	Harm      Reason   // what is harmful, or not understood, whatever these are; "" if nothing
}

// pureNodes are the labels of nodes that are harmless by themselves, in
// PostgreSQL 12 to 18. A tree with any other is not understood.
var pureNodes = wordSet(`
	AGGREF ALIAS ARRAY ARRAYCOERCEEXPR ARRAYEXPR BOOLEANTEST BOOLEXPR CASE CASEEXPR CASETESTEXPR CASEWHEN COALESCE
	COALESCEEXPR COERCETODOMAIN COERCETODOMAINVALUE COERCEVIAIO COLLATEEXPR COMMONTABLEEXPR CONST
	CONVERTROWTYPEEXPR CTECYCLECLAUSE CTESEARCHCLAUSE DISTINCTEXPR FIELDSELECT FIELDSTORE FROMEXPR FUNCEXPR
	GROUPINGFUNC GROUPINGSET JOINEXPR JSONBEHAVIOR JSONCONSTRUCTOREXPR JSONEXPR JSONFORMAT JSONISPREDICATE
	JSONRETURNING JSONTABLEPATH JSONTABLEPATHSCAN JSONTABLESIBLINGJOIN JSONVALUEEXPR MINMAX MINMAXEXPR NAMEDARGEXPR
	NULLIFEXPR NULLTEST OPEXPR PARAM QUERY RANGETBLENTRY RANGETBLFUNCTION RANGETBLREF RELABELTYPE ROW ROWCOMPARE
	ROWCOMPAREEXPR ROWEXPR RTE RTEPERMISSIONINFO SCALARARRAYOPEXPR SETOPERATIONSTMT SORTGROUPCLAUSE
	SQLVALUEFUNCTION SUBLINK SUBSCRIPTINGREF TABLEFUNC TABLESAMPLECLAUSE TARGETENTRY VAR WHEN WINDOWCLAUSE
	WINDOWFUNC WINDOWFUNCRUNCONDITION WITHCHECKOPTION XMLEXPR`)

// ScanTree reads a pg_node_tree. It keeps nothing of it.
func ScanTree(text string) Tree {
	var t Tree
	label := ""
	var around []string // the labels of the nodes that are open
	for i := 0; i < len(text); {
		switch text[i] {
		case '{':
			around = append(around, label)
			label, i = treeToken(text, i+1)
			if !pureNodes[label] && t.Harm == "" {
				t.Harm = harmOf(label)
			}
		case '}':
			if n := len(around); n > 0 {
				label, around = around[n-1], around[:n-1]
			}
			i++
		case ':':
			field := ""
			field, i = treeToken(text, i+1)
			i = t.field(label, field, text, i)
		case '\\':
			i += 2
		default:
			i++
		}
	}
	for _, list := range []*[]uint32{&t.Functions, &t.Operators, &t.Relations, &t.Domains} {
		slices.Sort(*list)
		*list = slices.Clip(slices.Compact(*list))
	}
	return t
}

func harmOf(label string) Reason {
	switch label {
	case "ROWMARKCLAUSE":
		return "lock: FOR UPDATE or SHARE"
	case "NEXTVALUEEXPR":
		return "write: nextval"
	}
	return "not known to be harmless: " + clean(label)
}

// field takes in one field of a node whose value starts at i.
func (t *Tree) field(label, field, text string, i int) int {
	switch field {
	case "funcid", "aggfnoid", "winfnoid", "tsmhandler":
		return treeNumbers(&t.Functions, text, i)
	case "opno", "opnos", "eqop", "sortop":
		return treeNumbers(&t.Operators, text, i)
	case "relid":
		return treeNumbers(&t.Relations, text, i)
	case "resulttype":
		if label == "COERCETODOMAIN" {
			return treeNumbers(&t.Domains, text, i)
		}
	case "commandType":
		if value, _ := treeToken(text, i); label == "QUERY" && value != "1" && t.Harm == "" {
			t.Harm = "write: the query does not only read"
		}
	}
	return i
}

// treeToken returns the text up to the next space or bracket.
func treeToken(text string, i int) (string, int) {
	for i < len(text) && text[i] == ' ' {
		i++
	}
	end := i
	for end < len(text) && !strings.ContainsRune(" {}()\n", rune(text[end])) {
		end++
	}
	return text[i:end], end
}

// treeNumbers appends an OID, or the OIDs of a list as in (o 96 97).
func treeNumbers(list *[]uint32, text string, i int) int {
	for i < len(text) && text[i] == ' ' {
		i++
	}
	many := i < len(text) && text[i] == '('
	if many {
		i++
	}
	for {
		token, next := treeToken(text, i)
		if n, err := strconv.ParseUint(token, 10, 32); err == nil && n != 0 {
			*list = append(*list, uint32(n))
		} else if token != "o" {
			return i
		}
		if i = next; !many {
			return i
		}
	}
}
