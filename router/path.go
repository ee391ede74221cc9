package router

import "strings"

// Path is what unqualified names mean to a session: the schemas of its
// search_path, as far as one state of the catalog goes. Sessions with the same
// one share it. Every schema of it counts, wherever it stands: whether a role may
// use the ones in front is not known here. The schema of temporary objects is left
// out, since a session that has any stays with its server connection.
type Path struct {
	owner      *Prover         // nil: nobody's
	generation uint64          // of the catalog
	schemas    map[string]bool // nil: not known, so that any schema may be meant
}

// has reports whether an unqualified name may mean an object in a schema.
func (p *Path) has(schema string) bool {
	return p.schemas == nil || p.schemas[schema] || schema == "pg_catalog"
}

// schemasOf reads the value of a search_path; ok is false when it is no list of
// names. "$user" is the name of the current role, as the schema is then called.
func schemasOf(value, role string) (schemas map[string]bool, ok bool) {
	schemas = make(map[string]bool)
	rest := strings.TrimSpace(value)
	if rest == "" {
		return schemas, true
	}
	for {
		var item string
		if item, rest, ok = cutIdentifier(rest); !ok {
			return nil, false
		}
		if item == "$user" {
			item = role
		}
		schemas[item] = true
		rest = strings.TrimSpace(rest)
		if rest == "" {
			return schemas, true
		}
		if rest[0] != ',' {
			return nil, false
		}
		rest = strings.TrimSpace(rest[1:])
	}
}

// cutIdentifier takes one name off the front of a list, as SplitIdentifierString
// in PostgreSQL's varlena.c does.
func cutIdentifier(s string) (item, rest string, ok bool) {
	if s == "" {
		return "", "", false
	}
	if s[0] != '"' {
		end := strings.IndexAny(s, ", \t\n\r\f\v")
		if end < 0 {
			end = len(s)
		}
		return strings.ToLower(s[:end]), s[end:], end > 0
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '"' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == '"' {
			b.WriteByte('"')
			i++
			continue
		}
		return b.String(), s[i+1:], true
	}
	return "", "", false
}
