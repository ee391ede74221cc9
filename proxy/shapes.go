package proxy

import "time"

// Shape is one statement that is remembered, as it is seen in one database.
type Shape struct {
	Shape, Hash string
	Database    string // entry of [databases]; "" where no catalog was asked
	Class       string // primary, read or any
	Reason      string
	Declaration string // of functions, which would let it go to replicas; "" if none would
	Hits        uint64
	Since       time.Time // when it was first seen
}

// Shapes returns the statements that are remembered, the most used first. One that
// was seen in several databases, or under several search_paths, is there several
// times.
func (s *Server) Shapes() []Shape {
	var out []Shape
	for _, st := range s.router.Shapes() {
		one := Shape{
			Shape: st.Shape, Hash: st.Hash, Class: st.Class.String(), Reason: string(st.Reason), Hits: st.Hits, Since: st.Stamped,
		}
		for _, p := range st.Proofs {
			in := one
			in.Database, in.Class, in.Reason, in.Declaration, in.Hits = p.Database, p.Class.String(), string(p.Reason), p.Frees, p.Hits
			out = append(out, in)
		}
		if len(st.Proofs) == 0 {
			out = append(out, one)
		}
	}
	return out
}
