package router

import (
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Part is one statement of a text of several.
type Part struct {
	Start, End int     // where it stands in the text, in bytes
	Listen     *Listen // nil: it is another statement
}

// ListenParts returns the statements of a text, some of which are LISTEN or
// UNLISTEN; nil if it does not parse.
func ListenParts(sql string) []Part {
	tree, err := pg.Parse(sql)
	if err != nil {
		return nil
	}
	var parts []Part
	for _, s := range tree.GetStmts() {
		p := Part{Start: int(s.GetStmtLocation()), End: int(s.GetStmtLocation() + s.GetStmtLen())}
		if s.GetStmtLen() == 0 { // up to the end of the text
			p.End = len(sql)
		}
		if l := planOf(s.GetStmt()).Listens; len(l) == 1 {
			p.Listen = &l[0]
		}
		parts = append(parts, p)
	}
	return parts
}

// listeningFunction tells which channels a session listens to.
const listeningFunction = "pg_listening_channels"

// WithChannels returns a text in which pg_listening_channels() gives these
// channels, in the place of those of the server's session; false if it does not
// parse.
func WithChannels(sql string, channels []string) (string, bool) {
	tree, err := pg.Parse(sql)
	if err != nil {
		return "", false
	}
	list := "{"
	for i, c := range channels {
		if i > 0 {
			list += ","
		}
		list += `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(c) + `"`
	}
	var walk func(m protoreflect.Message)
	walk = func(m protoreflect.Message) {
		switch n := m.Interface().(type) {
		case *pg.ResTarget:
			if n.GetName() == "" && asksListening(n.GetVal()) {
				n.Name = listeningFunction
			}
		case *pg.RangeFunction:
			if f := n.GetFunctions(); len(f) == 1 && n.GetAlias() == nil && len(f[0].GetList().GetItems()) > 0 &&
				asksListening(f[0].GetList().GetItems()[0]) {
				n.Alias = &pg.Alias{Aliasname: listeningFunction}
			}
		}
		eachChild(m, walk)
		if n, ok := m.Interface().(*pg.FuncCall); ok && lastName(n.GetFuncname()) == listeningFunction {
			n.Funcname = names("pg_catalog", "unnest")
			n.Args = []*pg.Node{{Node: &pg.Node_TypeCast{TypeCast: &pg.TypeCast{
				Arg:      pg.MakeAConstStrNode(list+"}", 0),
				TypeName: &pg.TypeName{Names: names("pg_catalog", "text"), ArrayBounds: []*pg.Node{pg.MakeIntNode(-1)}, Typemod: -1},
			}}}}
		}
	}
	walk(tree.ProtoReflect())
	out, err := pg.Deparse(tree)
	return out, err == nil
}

func asksListening(n *pg.Node) bool {
	return lastName(n.GetFuncCall().GetFuncname()) == listeningFunction
}

func names(parts ...string) []*pg.Node {
	var out []*pg.Node
	for _, p := range parts {
		out = append(out, pg.MakeStrNode(p))
	}
	return out
}
