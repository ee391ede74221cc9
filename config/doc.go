// Package config turns the TOML file of pgproxy into one validated value.
//
// Load decodes strictly (an unknown key is an error), fills in defaults, checks
// every value and the values against each other, and reports all errors at once,
// each with file, line, key and what would be right. What it returns is complete
// or nothing, so a reload can build the new value and swap it in.
//
// # Concurrency
//
// A Config and everything that it points to is frozen once it is returned: it may
// be read by any number of goroutines and must not be changed. The package starts
// no goroutine and keeps no state.
package config
