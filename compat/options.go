package compat

import (
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The ways in which a suite runs.
const (
	Direct = "direct" // no proxy: the tests talk to the primary
	Proxy  = "proxy"  // through pgproxy to the primary, no splitting
	Split  = "split"  // through pgproxy to the primary and two replicas
)

// Options says what to run. Default has the usual values.
type Options struct {
	Suites     []string // names; empty = all
	Ways       []string // besides Direct, which always runs
	Packages   []string // only these, as the report names them; empty = all
	Run        string   // go test's -run; "" = all
	Count      int      // go test's -count
	PgProxy    string   // program; "" = built from this module
	Exceptions string   // file; "" = none
	Out        string   // folder that keeps what the tests and the proxies print; "" = none
	Timeout    time.Duration
}

// Default is what is run without any flag, from the module's root.
func Default() Options {
	return Options{
		Ways: []string{Proxy, Split}, Count: 1, Exceptions: filepath.Join("compat", "exceptions.txt"), Timeout: 30 * time.Minute,
	}
}

// ParseFlags reads the command line. Usage and errors are printed to out; the
// error is flag.ErrHelp when help was asked for.
func ParseFlags(args []string, out io.Writer) (Options, error) {
	o := Default()
	var names []string
	for _, s := range suites {
		names = append(names, s.name)
	}
	fs := flag.NewFlagSet("compat", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.Func("suites", "only these `suites`: "+strings.Join(names, ", "), list(&o.Suites))
	fs.Func("ways", "only these `ways`, besides direct: proxy, split", list(&o.Ways))
	fs.Func("packages", "only these `packages`, as the report names them", list(&o.Packages))
	fs.StringVar(&o.Run, "run", o.Run, "only tests that match this `pattern`")
	fs.IntVar(&o.Count, "count", o.Count, "run each test so many `times`")
	fs.StringVar(&o.PgProxy, "pgproxy", o.PgProxy, "pgproxy's `program` (default: built from this module)")
	fs.StringVar(&o.Exceptions, "exceptions", o.Exceptions, "`file` of tests that may fail; \"\" for none")
	fs.StringVar(&o.Out, "out", o.Out, "`folder` that keeps what tests and proxies print")
	fs.DurationVar(&o.Timeout, "timeout", o.Timeout, "end everything after this `time`")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	err := o.check(names)
	if fs.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(out, err)
	}
	return o, err
}

func (o *Options) check(names []string) error {
	for _, s := range o.Suites {
		if !slices.Contains(names, s) {
			return fmt.Errorf("-suites %q: want %s", s, strings.Join(names, ", "))
		}
	}
	for _, w := range o.Ways {
		if w != Proxy && w != Split {
			return fmt.Errorf("-ways %q: want %s, %s", w, Proxy, Split)
		}
	}
	if o.Count < 1 || o.Timeout <= 0 {
		return fmt.Errorf("-count and -timeout want something above 0")
	}
	return nil
}

// part reports whether only some tests are asked for.
func (o *Options) part() bool { return o.Run != "" || len(o.Packages) > 0 }

// list returns the parser of a flag that is a list with commas.
func list(to *[]string) func(string) error {
	return func(text string) error {
		*to = nil
		for f := range strings.SplitSeq(text, ",") {
			if f = strings.TrimSpace(f); f != "" {
				*to = append(*to, f)
			}
		}
		return nil
	}
}
