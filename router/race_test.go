//go:build race

package router

// raceEnabled: under the race detector a sync.Pool drops what it is given by
// chance, so allocations cannot be counted.
const raceEnabled = true
