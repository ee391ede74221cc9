// Package pool lends server connections fairly and keeps count of them.
//
// A Pool holds the connections of one database and user on one server: a stack
// of idle ones, so that the warmest is used first, and a queue of waiters, who
// are served in the order of their arrival. A Set holds all pools and the limits
// that span them.
//
// # Concurrency
//
// Everything may be called by any goroutine. Each Pool has one mutex, under
// which no I/O is done and no other lock is taken but Set.caps; connections are
// opened and closed by goroutines that Set.Close waits for. Connections
// themselves have locks of their own, which are never held when a pool is called
// (see package backend).
package pool
