// Package admin is the console: the databases pgproxy and pgbouncer, where SHOW
// tells what the proxy is doing and a few commands change it.
//
// Columns, types, order and texts are those of PgBouncer 1.25, so that what reads
// PgBouncer's console reads this one; what it has no words for has SHOWs of its
// own (SERVERS_HEALTH, PINS, POOLS_SERVERS). Both the simple and the extended
// protocol are served. The registry in registry.go has an entry for every
// command; an entry that is not marked as read-only is for admin_users alone.
//
// # Concurrency
//
// One Console serves any number of clients. Each client has two goroutines:
// Serve itself, which runs the commands, and a reader, which Serve waits for and
// which tells a command that blocks (PAUSE, WAIT_CLOSE) that its client has gone.
// One more goroutine takes the samples that averages are made of; Close ends it.
// The state of a client belongs to Serve. What the Console keeps for all of them
// is guarded by Console.mu, under which no other lock is taken.
package admin
