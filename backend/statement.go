package backend

// Statement is a prepared statement as servers see it: one text with its
// parameter types, under a name that no client chooses. It is immutable, so any
// number of clients and server connections share it.
type Statement struct {
	Name  string // on every server connection that has it
	Query []byte
	OIDs  []byte // count and parameter type OIDs, as in Parse
}

// prepared is the set of statements that a server connection has. Its owner is
// Conn, under Conn.mu.
type prepared struct {
	used map[*Statement]uint64 // when last used, in ticks
	tick uint64
	mark uint64 // tick at the start of the batch that is being sent
}

func (p *prepared) has(s *Statement) bool {
	if _, ok := p.used[s]; !ok {
		return false
	}
	p.tick++
	p.used[s] = p.tick
	return true
}

func (p *prepared) add(s *Statement) {
	if p.used == nil {
		p.used = make(map[*Statement]uint64)
	}
	p.tick++
	p.used[s] = p.tick
}

// evict takes out the statement that was used longest ago if there are more
// than limit. Those of the batch that is being sent stay.
func (p *prepared) evict(limit int) *Statement {
	if limit <= 0 || len(p.used) <= limit {
		return nil
	}
	var oldest *Statement
	at := p.mark + 1
	for s, t := range p.used {
		if t < at {
			oldest, at = s, t
		}
	}
	if oldest != nil {
		delete(p.used, oldest)
	}
	return oldest
}
