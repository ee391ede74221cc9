// Package pgtest is what pgproxy's tests, its demo and its benchmark stand on:
//
//   - Cluster: a real PostgreSQL primary with hot standbys in a temporary folder
//     (StartCluster, Start, Shared).
//   - RawClient: a client that writes any bytes and reads framed messages.
//   - FakeServer: a server end that plays a Script and records what it was sent.
//   - Relay: a TCP relay that delays, swallows, cuts and resets on command.
//   - Slapd: an OpenLDAP server.
//   - Census: goroutines, descriptors and server sessions before and after.
//
// Nothing here is fast on purpose or meant for production. Everything that waits
// has a bound.
//
// Concurrency: a Cluster starts one shell that outlives the process if the
// process is killed; it then ends the servers and removes the folder. Each Node
// has one goroutine that waits for its server process; FakeServer and Relay have
// one for the listener and one or two for each connection, all of which end in
// their Close.
package pgtest
