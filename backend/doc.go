// Package backend is one server connection, from dial to terminate.
//
// A Conn has a goroutine of its own for its whole life, which reads the server
// and writes to the client whose turn it is. The client's goroutine writes to
// the server. What ties the two together is the queue of owed replies: whoever
// sends a message first notes which reply it will get and whose that is, and
// the reply is forwarded, swallowed or made up as its entry says. A connection
// goes back to its pool only when nothing is owed, the server is outside a
// transaction, and the client is not in the middle of anything.
//
// A connection that is lent for one single read may be joined by others with such
// reads (share.go): the queue then holds the replies of several clients, one behind
// the other, and the holder is always the one whose reply comes next.
//
// # Concurrency
//
// Conn.mu guards the queue and who holds the connection; no I/O is done under
// it. Conn.writing serialises writes to the server. Lock order: Conn.mu may be
// taken with a client's write lock (Sink.Lock) held, never the other way round.
// Each connection's goroutine is waited for by Conn.Wait.
package backend
