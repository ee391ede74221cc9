// Package bench compares pgproxy with PgBouncer, Pgpool-II, itself without splitting, and no proxy at all: the
// same cluster, the same pgbench, one run, in alternating rounds. Its command is
// bench/run, which "make bench" calls.
//
// For each workload every peer is started afresh and warmed up; then each round
// loads one peer after the other, beginning with another one each time. A round
// gives transactions a second and latencies as pgbench reports them, and the CPU
// time that the proxy's process used for each transaction. The report has the
// medians over the rounds. A ratio to PgBouncer is taken within each round, so a
// machine that slows down for a while slows down both.
//
// Concurrency: a process that is measured has one goroutine that waits for its
// end, which stop brings about. Clients of the idle workload are opened and
// closed by a bounded group that is waited for. Configurations, logs and programs
// lie in the cluster's folder, so that the cluster's watchdog also ends what is
// left of us if we are killed.
package bench
