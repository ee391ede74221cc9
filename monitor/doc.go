// Package monitor knows which servers are up, which of them is the primary, and
// how far behind the replicas are.
//
// It has one connection of its own to each server of each database, outside
// every pool. Over it the server is asked each server_check_interval, and each
// lsn_interval where there are replicas, for its role and its WAL positions.
// What comes of it is one router.Topology for each database, replaced whole
// whenever it changes.
//
// # Causal reads
//
// A sample is the primary's WAL insert position with a stamp from before it was
// asked for, so every write that was acknowledged before the stamp lies below
// the position. A replica that has replayed the position shows them all:
// Covered is the newest such stamp. It is worked out anew from what the replica
// said last and forgotten when its connection breaks, because a standby that
// crashed may come back with less than it had.
//
// Positions are compared only within one cluster and timeline. The samples of a
// primary end with its reign. A replica counts only when it is known to have
// reached the primary's timeline. A role that may read pg_stat_wal_receiver
// (GRANT pg_read_all_stats, or pg_monitor) learns that at once; any other sees
// it in the replica's control file, up to one checkpoint_timeout after a
// promotion, and until then the replica counts as having replayed nothing of
// the new primary.
//
// # Lag
//
// The lag of a replica is the age of the oldest sample that it has not replayed,
// by what the primary had flushed, as no replica can have more. While the
// primary is down there are no new samples, and a replica that has replayed the
// last one has a lag of 0. Where there are no samples the time of the last
// replayed transaction is taken instead, unless the replica receives from
// somewhere and has replayed everything that it received. It is 0 where nothing
// is known: on servers with a fixed role that are asked nothing.
//
// # Two primaries
//
// The one with the higher timeline wins, for as long as the process lives; the
// other one's role is shown as unknown, and pools are told to cut it off (Gate)
// before the picture with the new one is published. With the same timeline both
// stay, and router refuses to choose; once both have confirmed it, also while one of
// them is down (roles.go). A server of another cluster is not used: which one is
// meant is settled once. Where Patroni is asked (patroni.go) its leader is the
// primary, if it says so itself.
//
// # Switchovers
//
// While one is held (switchover.go) the picture is Halted: nothing new goes to the
// primary, until another server is one on a newer timeline.
//
// # Catalogs
//
// Of each database whose statements are split the catalog is read from the primary,
// in one transaction over a connection that is there only for that: every
// catalog_interval, when the router asks because of DDL, and when the primary is
// another one. What was read goes to the database's router.Prover. Texts (stored
// views, bodies of functions) are read again only when their row has changed.
//
// # Concurrency
//
// Each server has one goroutine, which Close, or Apply when it removes the
// server, stops and waits for. Lock order: Monitor.mu, entry.mu,
// catalogs.mu, server.wakeMu. No I/O is done and nothing is logged under the last
// three. Topology and Wait take no lock. Everything exported may be called by any goroutine.
package monitor
