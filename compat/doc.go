// Package compat runs the test suites of PostgreSQL drivers, as their authors
// have written them, directly on a server and through pgproxy, and compares which
// tests fail. Its command is compat/run, which "make compat" calls.
//
// The sources come from Go's module cache. Each package is compiled once; its
// tests then run in each of the ways: direct, through pgproxy in transaction mode
// in front of one server, and with read/write splitting in front of a primary and
// two streaming replicas. A test that passes directly must pass in every way. The
// exceptions stand in a file that is checked in both directions: see
// docs/compat.md.
//
// Concurrency: everything runs in one goroutine. Programs are children in
// sessions of their own; each has a goroutine that waits for its end. Sources,
// programs and logs lie in the cluster's folder, whose watchdog removes them if we
// are killed.
package compat
