package netio

// Gather collects what goes to one peer in one write. Runs of relayed bytes that
// are neighbours in the read buffer stay where they are; only what is made or
// rewritten in between is copied. Its zero value is empty and ready.
type Gather struct {
	raw  []byte // a run of the read buffer; empty once something is made
	made []byte
}

// Len returns how many bytes have been gathered.
func (g *Gather) Len() int { return len(g.raw) + len(g.made) }

// Raw reports whether all of it is one run of the read buffer: then Bytes is valid for
// as long as that is.
func (g *Gather) Raw() bool { return len(g.made) == 0 }

// Reset forgets everything, and gives up memory that was used for much.
func (g *Gather) Reset() {
	g.raw = nil
	if cap(g.made) > smallBuffer {
		g.made = nil
	}
	g.made = g.made[:0]
}

// Truncate forgets all but the first n bytes.
func (g *Gather) Truncate(n int) {
	if n <= len(g.made) {
		g.raw, g.made = nil, g.made[:n]
		return
	}
	g.raw = g.raw[:n-len(g.made)]
}

// Relay adds p, which must stay as it is until Bytes has been used.
func (g *Gather) Relay(p []byte) {
	if len(p) == 0 {
		return
	}
	n := len(g.raw)
	if n == 0 && len(g.made) == 0 {
		g.raw = p
		return
	}
	if n > 0 && cap(g.raw) >= n+len(p) && &g.raw[:n+1][n] == &p[0] {
		g.raw = g.raw[:n+len(p)]
		return
	}
	*g.Made() = append(*g.Made(), p...)
}

// Made returns the buffer to append made bytes to, with all that was gathered
// before in front.
func (g *Gather) Made() *[]byte {
	if len(g.raw) > 0 {
		g.made = append(g.made, g.raw...)
		g.raw = nil
	}
	return &g.made
}

// Bytes returns all of it, valid until the next call of another method.
func (g *Gather) Bytes() []byte {
	if len(g.made) == 0 {
		return g.raw
	}
	return *g.Made()
}
