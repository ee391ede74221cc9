// Package netio reads and writes sockets with as few system calls and wake-ups
// as Go allows.
//
// Go's poller is edge-triggered: a read that returned less than its buffer has
// drained the socket, and the next read would only fail with EAGAIN before the
// goroutine parks. Loop therefore stays inside one syscall.RawConn.Read for the
// life of the connection and parks straight after a short read. Inside these
// callbacks the descriptor is known to be non-blocking, so the system calls are
// raw: the scheduler does not need to know about them. They are recv and send,
// which take a shorter way through the kernel than read and write.
//
// The price is that an end of file which arrives together with the last bytes
// raises no second edge. Whoever owns many connections calls Probe on those that
// have been quiet for a while; one probe after each busy period is enough.
//
// Connections without a descriptor of their own (TLS, in-memory pipes) take the
// ordinary Read and Write.
//
// # Concurrency
//
// One goroutine runs Loop, one at a time calls Write; both may run at once.
// Wake, Probe and Close may be called by anybody.
package netio
