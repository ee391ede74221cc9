package proxy

import (
	"sync"

	"pgproxy/backend"
	"pgproxy/wire"
)

// mute is a Sink that nothing is told to. Others are made of it.
type mute struct{ sync.Mutex }

// Reply hears nothing.
func (*mute) Reply([]byte) error { return nil }

// TryReply leaves all of it to Reply.
func (*mute) TryReply(p []byte) []byte { return p }

// Reported hears nothing.
func (*mute) Reported(string, string, bool) {}

// Undone hears nothing.
func (*mute) Undone(uint64) {}

// Answered hears nothing.
func (*mute) Answered(int64, bool) {}

// Signalled hears nothing.
func (*mute) Signalled(backend.Signal, uint32, bool) {}

// Failing hears nothing.
func (*mute) Failing() {}

// Failed hears nothing.
func (*mute) Failed(*backend.Failure) {}

// Lost hears nothing.
func (*mute) Lost(error, bool) {}

// messages puts the messages of a server together, of which a Sink may get a part
// at a time.
type messages struct{ part []byte }

// maxHeld bounds a message that is put together in bytes.
const maxHeld = 64 << 20

// each calls f for every message that is complete with p. The body is valid only
// during the call.
func (m *messages) each(p []byte, f func(typ byte, body []byte)) error {
	if len(m.part) > 0 {
		m.part = append(m.part, p...)
		p = m.part
	}
	for len(p) >= wire.HeaderLen {
		h, err := wire.ReadHeader(p, maxHeld)
		if err != nil {
			return err
		}
		if len(p) < h.Size() {
			break
		}
		f(h.Type, p[wire.HeaderLen:h.Size()])
		p = p[h.Size():]
	}
	m.part = append(m.part[:0], p...)
	return nil
}

// answers take the rows that a server answers to a question of the proxy's own.
type answers struct {
	mute
	in   messages
	rows [][]string  // NULL is ""
	err  *wire.Error // the server's
}

var _ backend.Sink = (*answers)(nil)

// Reply keeps rows.
func (r *answers) Reply(p []byte) error {
	return r.in.each(p, func(typ byte, body []byte) {
		switch typ {
		case wire.DataRow:
			values, err := wire.ReadDataRow(body)
			if err != nil {
				return
			}
			row := make([]string, len(values))
			for i, v := range values {
				row[i] = string(v)
			}
			r.rows = append(r.rows, row)
		case wire.ErrorResponse:
			r.err = wire.ReadError(body)
		}
	})
}
