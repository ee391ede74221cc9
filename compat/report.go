package compat

import (
	"fmt"
	"slices"
	"strings"
)

// Result is what all suites did in all ways.
type Result struct {
	Modules []string // with their versions
	Server  string   // version of PostgreSQL
	Rows    []Row

	opt      Options
	accepted []exception
	direct   map[string]*outcome // by suite
}

// Row is one suite in one way.
type Row struct {
	Suite, Way             string
	Passed, Skipped        int
	Failed                 []string // as directly
	FailedOnly, PassedOnly []string // other than directly
	Accepted               []string // those of FailedOnly's kind that are excepted
	Unsteady               []string // those that passed each time when they were run again alone
	Unneeded               []string // exceptions of tests that do not fail

	output map[string][]string
}

func newResult(opt Options, accepted []exception) *Result {
	return &Result{opt: opt, accepted: accepted, direct: make(map[string]*outcome)}
}

// add takes over what a suite did in one way; Direct must come first.
func (r *Result) add(suite, way string, o *outcome) {
	row := Row{Suite: suite, Way: way, Passed: o.count("pass"), Skipped: o.count("skip"), output: o.output}
	if way == Direct {
		r.direct[suite] = o
		row.Failed = o.failed()
		r.Rows = append(r.Rows, row)
		return
	}
	d := r.direct[suite]
	row.FailedOnly = r.notAccepted(suite, way, o)
	for _, name := range d.otherwise(o) {
		if !slices.Contains(row.FailedOnly, name) {
			row.Accepted = append(row.Accepted, name)
		}
	}
	for name, st := range o.status {
		if st == unsteady {
			row.Unsteady = append(row.Unsteady, name)
		}
	}
	slices.Sort(row.Unsteady)
	for _, name := range d.failed() {
		if o.status[name] == "pass" {
			row.PassedOnly = append(row.PassedOnly, name)
		} else {
			row.Failed = append(row.Failed, name)
		}
	}
	for _, e := range r.accepted {
		if e.suite == suite && e.way == way && !r.opt.part() && !slices.ContainsFunc(row.Accepted, e.covers) {
			row.Unneeded = append(row.Unneeded, e.test)
		}
	}
	r.Rows = append(r.Rows, row)
}

// notAccepted lists the tests that are well directly and not in o, without the
// exceptions.
func (r *Result) notAccepted(suite, way string, o *outcome) []string {
	return slices.DeleteFunc(r.direct[suite].otherwise(o), func(name string) bool {
		return slices.ContainsFunc(r.accepted, func(e exception) bool { return e.suite == suite && e.way == way && e.covers(name) })
	})
}

// otherwise lists the tests that are well in o, which is direct, and not in way:
// failed by themselves, skipped, or never run.
func (o *outcome) otherwise(way *outcome) []string {
	var out []string
	for _, name := range way.failed() {
		if o.status[name] != "fail" {
			out = append(out, name)
		}
	}
	failed := slices.Clone(out)
	for name, st := range o.status {
		if st == "pass" && (way.status[name] == "" || way.status[name] == "skip") && !slices.ContainsFunc(failed, func(f string) bool {
			return strings.HasPrefix(name, f+"/") // it did not get there
		}) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Failed reports whether a test failed that must not, or an exception is not
// needed.
func (r *Result) Failed() bool {
	return slices.ContainsFunc(r.Rows, func(row Row) bool { return len(row.FailedOnly)+len(row.Unneeded) > 0 })
}

// Markdown is the report.
func (r *Result) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, on PostgreSQL %s; pools of %d server connections, transaction mode.\n\n", strings.Join(r.Modules, ", "), r.Server, poolSize)
	b.WriteString("| suite | way | passed | skipped | failed as directly | failed only here | accepted |\n|---|---|---:|---:|---:|---:|---:|\n")
	for _, row := range r.Rows {
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %d | %d | %d |\n", row.Suite, row.Way, row.Passed, row.Skipped, len(row.Failed), len(row.FailedOnly), len(row.Accepted))
	}
	for _, row := range r.Rows {
		section := func(title string, names []string) {
			if len(names) > 0 {
				fmt.Fprintf(&b, "\n%s, %s: %s\n\n", row.Suite, row.Way, title)
				for _, n := range names {
					fmt.Fprintf(&b, "- %s\n", n)
				}
			}
		}
		if row.Way == Direct {
			section("failed", row.Failed)
		}
		section("failed only here", row.FailedOnly)
		section("passed only here", row.PassedOnly)
		section("accepted", row.Accepted)
		section("failed, then passed 5 times of 5 alone", row.Unsteady)
		section("an exception that is not needed", row.Unneeded)
	}
	for _, row := range r.Rows {
		for _, n := range row.FailedOnly {
			fmt.Fprintf(&b, "\n### %s, %s: %s\n\n", row.Suite, row.Way, n)
			for line := range strings.Lines(shorten(strings.Join(row.output[n], ""))) {
				b.WriteString("    " + line)
			}
		}
	}
	return b.String()
}

// shorten leaves out the middle of a long text.
func shorten(text string) string {
	const most = 4000
	if len(text) <= most {
		return text
	}
	return text[:most/2] + "\n...\n" + text[len(text)-most/2:]
}

// text is everything that failed tests printed.
func (o *outcome) text() string {
	var b strings.Builder
	for _, name := range o.failed() {
		fmt.Fprintf(&b, "=== %s\n%s", name, strings.Join(o.output[name], ""))
	}
	return b.String()
}
