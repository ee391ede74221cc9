// Package repocheck holds the rules of the repository that no compiler holds:
// which package may import which, one package comment for each package, no
// silently skipped tests and no sleeps in them, and no paths of somebody's
// machine in the text. It has tests only.
package repocheck
