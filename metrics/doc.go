// Package metrics turns what the other packages count into Prometheus metrics
// when they are scraped, and answers health checks.
//
// It imports what it observes and is known to nobody but main, so nothing else
// depends on how it is shown. The values are the same copies that the console
// shows. Passwords are not among them.
//
// # Concurrency
//
// Everything may be called by any number of goroutines. A scrape asks the pools,
// the server and the monitor for copies and keeps nothing. The one goroutine
// belongs to Server, which waits for it in Close.
package metrics
