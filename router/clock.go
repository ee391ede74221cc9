package router

import (
	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// clockFunctions give, or may give, the time at which the transaction began; the
// second line by reading texts such as 'now' and 'today'.
var clockFunctions = wordSet(`
	now transaction_timestamp age timenow
	date time timetz timestamp timestamptz abstime make_interval to_timestamp to_date`)

// clockTypes are those whose input reads texts such as 'now' and 'today'.
var clockTypes = wordSet(`date time timetz timestamp timestamptz`)

// tellsTime reports whether the parsed statement m may show when its transaction
// began. A comparison of a column with 'today' is not seen.
func tellsTime(m proto.Message) bool { return clockIn(m.ProtoReflect()) }

func clockIn(m protoreflect.Message) (found bool) {
	switch n := m.Interface().(type) {
	case *pg.SQLValueFunction:
		switch n.GetOp() {
		case pg.SQLValueFunctionOp_SVFOP_CURRENT_ROLE, pg.SQLValueFunctionOp_SVFOP_CURRENT_USER, pg.SQLValueFunctionOp_SVFOP_USER,
			pg.SQLValueFunctionOp_SVFOP_SESSION_USER, pg.SQLValueFunctionOp_SVFOP_CURRENT_CATALOG, pg.SQLValueFunctionOp_SVFOP_CURRENT_SCHEMA:
		default:
			return true
		}
	case *pg.FuncCall:
		if clockFunctions[lastName(n.GetFuncname())] {
			return true
		}
	case *pg.TypeCast:
		if clockTypes[lastName(n.GetTypeName().GetNames())] {
			return true
		}
	}
	eachChild(m, func(child protoreflect.Message) { found = found || clockIn(child) })
	return found
}
