package pgtest

import (
	"fmt"
	"time"

	"pgproxy/wire"
)

// Script is what a FakeServer does on a connection, step by step; the connection
// closes behind the last. As a handler:
//
//	script := pgtest.Script{
//		pgtest.AcceptLogin(),
//		pgtest.ExpectMessages("Q"),
//		pgtest.SendBytes(wire.AppendReadyForQuery(nil, wire.TxIdle)),
//		pgtest.HoldOpen(),
//	}
//	server := pgtest.NewFakeServer(t, script.Run)
type Script []Step

// Step is one step of a Script.
type Step func(*FakeConn) error

// Run plays the script.
func (s Script) Run(c *FakeConn) error {
	for i, step := range s {
		if err := step(c); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

// AcceptLogin is FakeConn.Accept as a step.
func AcceptLogin() Step { return (*FakeConn).Accept }

// ExpectMessages reads as many messages as trace has words and fails if they are
// not these; words are as in RawClient.Expect, with types as clients send them.
func ExpectMessages(trace string) Step {
	words := splitTrace(trace)
	return func(c *FakeConn) error {
		var got []Msg
		for _, w := range words {
			m, err := c.Read()
			if err != nil {
				return fmt.Errorf("expected %s, got %s, then %w", trace, types(got), err)
			}
			got = append(got, m)
			if w != string(rune(m.Type)) {
				return fmt.Errorf("expected %s, got %s", trace, types(got))
			}
		}
		return nil
	}
}

// types is a trace of bare types: Trace reads bodies as a server's.
func types(msgs []Msg) string {
	var b []byte
	for i, m := range msgs {
		if i > 0 {
			b = append(b, ' ')
		}
		b = append(b, m.Type)
	}
	return string(b)
}

// SendBytes sends messages or any bytes in one write.
func SendBytes(msgs ...[]byte) Step {
	return func(c *FakeConn) error { return c.Send(msgs...) }
}

// SendPieces sends data in pieces of at most size bytes with a pause between
// them.
func SendPieces(data []byte, size int, pause time.Duration) Step {
	return func(c *FakeConn) error {
		_, err := (&CutWriter{W: c.Conn, Size: size, Pause: pause}).Write(data)
		return err
	}
}

// SendError sends an ErrorResponse.
func SendError(e *wire.Error) Step { return SendBytes(e.Append(nil)) }

// Await waits until ch is closed or gives a value, or the server is closed.
func Await(ch <-chan struct{}) Step {
	return func(c *FakeConn) error {
		select {
		case <-ch:
		case <-c.server.closed:
		}
		return nil
	}
}

// Tell closes ch, to let the test know how far the script has come.
func Tell(ch chan<- struct{}) Step {
	return func(*FakeConn) error {
		close(ch)
		return nil
	}
}

// HalfClose is FakeConn.CloseWrite as a step.
func HalfClose() Step { return (*FakeConn).CloseWrite }

// ResetNow is FakeConn.Reset as a step.
func ResetNow() Step { return (*FakeConn).Reset }

// HoldOpen is FakeConn.Hold as a step: the peer is never read again.
func HoldOpen() Step { return (*FakeConn).Hold }

// DrainAll is FakeConn.Drain as a step.
func DrainAll() Step { return (*FakeConn).Drain }

// ServeAll is FakeConn.Serve as a step.
func ServeAll(answer func(sql string) (string, error)) Step {
	return func(c *FakeConn) error { return c.Serve(answer) }
}
