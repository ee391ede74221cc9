package bench

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The peers, by the names that Options.Peers and the report use.
const (
	PgProxy   = "pgproxy"
	Unsplit   = "unsplit" // pgproxy with read_write_split off
	Base      = "base"    // another build of pgproxy
	PgBouncer = "pgbouncer"
	Pgpool    = "pgpool"
	Direct    = "direct" // no proxy: clients talk to the primary
)

var (
	peerNames = []string{PgProxy, Unsplit, Base, PgBouncer, Pgpool, Direct}
	modeNames = []string{"simple", "extended", "prepared"}
	authNames = []string{"trust", "scram-sha-256"}
)

// Options says what to measure and how. Default has the usual values.
type Options struct {
	Rounds   int      `json:"rounds"`  // counted rounds for each workload; 0 = no load at all
	Seconds  int      `json:"seconds"` // length of a round
	Clients  []int    `json:"clients"`
	Modes    []string `json:"modes"` // pgbench -M
	TPCB     bool     `json:"tpcb"`  // also pgbench's standard script, simple, 16 clients
	Idle     int      `json:"idle"`  // clients of the idle workload; 0 = none
	Pools    []int    `json:"pools"` // pgproxy has the largest, PgBouncer the one that suits it best
	Scale    int      `json:"scale"` // pgbench -s
	Replicas int      `json:"replicas"`
	Auth     string   `json:"auth"`   // how clients log in
	Sample   float64  `json:"sample"` // share of the transactions whose latency is noted

	Peers     []string `json:"peers"`     // empty = all that are found
	PgProxy   string   `json:"pgproxy"`   // program; "" = built from this module
	Base      string   `json:"base"`      // program to compare pgproxy with; "" = none
	PgBouncer string   `json:"pgbouncer"` // program; "" = looked for
	Reference string   `json:"reference"` // the peer that ratios are taken to
	Profile   string   `json:"profile"`   // folder for pgproxy's CPU profiles; "" = none
	JSON      string   `json:"-"`         // file for the result; "" = none
}

// Default is what is measured without any flag.
func Default() Options {
	return Options{
		Rounds: 5, Seconds: 5, Clients: []int{16, 64, 256}, Modes: slices.Clone(modeNames), Pools: []int{20},
		Scale: 10, Replicas: 2, Auth: "trust", Sample: 0.2, Reference: PgBouncer, JSON: filepath.Join(".bench", "result.json"),
	}
}

// ParseFlags reads the command line. Usage and errors are printed to out; the
// error is flag.ErrHelp when help was asked for.
func ParseFlags(args []string, out io.Writer) (Options, error) {
	o := Default()
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.IntVar(&o.Rounds, "rounds", o.Rounds, "counted `rounds` for each workload; 0 for none, with -idle")
	fs.IntVar(&o.Seconds, "seconds", o.Seconds, "`seconds` of a round")
	fs.Var((*numbers)(&o.Clients), "clients", "numbers of `clients`, with commas")
	fs.Var((*words)(&o.Modes), "modes", "query `modes`: simple, extended, prepared")
	fs.BoolVar(&o.TPCB, "tpcb", o.TPCB, "also pgbench's standard (writing) script, simple, 16 clients")
	fs.IntVar(&o.Idle, "idle", o.Idle, "also the memory of this `number` of idle clients")
	fs.Var((*numbers)(&o.Pools), "pool", "server connections of a pool; of several `sizes` pgproxy gets the largest\nand PgBouncer whichever is best for it in a trial of each workload")
	fs.IntVar(&o.Scale, "scale", o.Scale, "pgbench's scale `factor`")
	fs.IntVar(&o.Replicas, "replicas", o.Replicas, "`number` of streaming replicas; only pgproxy makes use of them")
	fs.StringVar(&o.Auth, "auth", o.Auth, "how clients log in: trust, scram-sha-256\n(the CPU time of the logins counts, and SCRAM is costly)")
	fs.Float64Var(&o.Sample, "sample", o.Sample, "`share` of the transactions whose latency is noted")
	fs.Var((*words)(&o.Peers), "peers", "only these `peers`: "+strings.Join(peerNames, ", "))
	fs.StringVar(&o.PgProxy, "pgproxy", o.PgProxy, "pgproxy's `program` (default: built from this module)")
	fs.StringVar(&o.Base, "base", o.Base, "another pgproxy `program`, such as an earlier one, that is measured as the peer base")
	fs.StringVar(&o.Reference, "reference", o.Reference, "the `peer` that ratios are taken to")
	fs.StringVar(&o.PgBouncer, "pgbouncer", o.PgBouncer, "PgBouncer's `program` (default: looked for)")
	fs.StringVar(&o.Profile, "profile", o.Profile, "`folder` for CPU profiles of pgproxy, one for each workload")
	fs.StringVar(&o.JSON, "json", o.JSON, "`file` for everything measured; \"\" for none")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	err := o.check()
	if fs.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(out, err)
	}
	return o, err
}

// check reports the first option that makes no sense.
func (o *Options) check() error {
	for _, n := range []struct {
		name          string
		value         int
		least, utmost int
	}{
		{"rounds", o.Rounds, 0, 1000},
		{"seconds", o.Seconds, 1, 3600},
		{"idle", o.Idle, 0, 25000},
		{"scale", o.Scale, 1, 1000},
		{"replicas", o.Replicas, 0, 8},
	} {
		if n.value < n.least || n.value > n.utmost {
			return fmt.Errorf("-%s %d: want %d to %d", n.name, n.value, n.least, n.utmost)
		}
	}
	if err := oneOf("modes", o.Modes, modeNames); err != nil {
		return err
	}
	if err := oneOf("peers", o.Peers, peerNames); err != nil {
		return err
	}
	if err := oneOf("reference", []string{o.Reference}, peerNames); err != nil {
		return err
	}
	if slices.Contains(o.Peers, Base) && o.Base == "" {
		return errors.New("-peers base: want -base PROGRAM too")
	}
	if err := oneOf("auth", []string{o.Auth}, authNames); err != nil {
		return err
	}
	if o.Sample <= 0 || o.Sample > 1 {
		return fmt.Errorf("-sample %g: want more than 0 and at most 1", o.Sample)
	}
	if len(o.Pools) == 0 || len(o.Clients) == 0 || len(o.Modes) == 0 {
		return errors.New("-pool, -clients and -modes want one value at least")
	}
	if slices.Max(o.Pools) > 1000 || slices.Max(o.Clients) > 5000 {
		return errors.New("want at most -pool 1000 and -clients 5000")
	}
	if o.Rounds == 0 && o.Idle == 0 {
		return errors.New("nothing to do: -rounds 0 without -idle")
	}
	return nil
}

// workloads are those of the options in the order in which they are measured.
func (o *Options) workloads() []Workload {
	if o.Rounds == 0 {
		return nil
	}
	var out []Workload
	for _, mode := range o.Modes {
		for _, n := range o.Clients {
			out = append(out, Workload{Script: "select", Mode: mode, Clients: n})
		}
	}
	if o.TPCB {
		out = append(out, Workload{Script: "tpcb", Mode: "simple", Clients: 16})
	}
	return out
}

// wants reports whether a peer is asked for. Without a list, those that differ
// only in what they do with replicas need some.
func (o *Options) wants(peer string) bool {
	if len(o.Peers) > 0 {
		return slices.Contains(o.Peers, peer)
	}
	switch peer {
	case Unsplit, Pgpool:
		return o.Replicas > 0
	case Base:
		return o.Base != ""
	}
	return true
}

// largestPool is the pool of a peer that tries no sizes.
func (o *Options) largestPool() int { return slices.Max(o.Pools) }

// maxConnections is what every server must take: all clients at once by the
// direct way, and the pools of the proxies.
func (o *Options) maxConnections() int {
	most := 16
	if o.Rounds > 0 {
		most = max(most, slices.Max(o.Clients))
	}
	return most + 2*o.largestPool() + 50 // a process of Pgpool-II, one for each client, has one too
}

// maxClients is how many clients each proxy is told to accept.
func (o *Options) maxClients() int { return max(10000, 2*o.Idle) }

// guess is about how long the load of so many peers takes.
func (o *Options) guess(peers int) time.Duration {
	each := o.Rounds*(o.Seconds+1) + 2
	if len(o.Pools) > 1 {
		each += o.Seconds
	}
	return time.Duration(len(o.workloads())*peers*each) * time.Second
}

func oneOf(flag string, given, known []string) error {
	for _, g := range given {
		if !slices.Contains(known, g) {
			return fmt.Errorf("-%s %q: want %s", flag, g, strings.Join(known, ", "))
		}
	}
	return nil
}

// numbers is a flag of positive integers with commas.
type numbers []int

// String is the flag's text.
func (n *numbers) String() string {
	var s []string
	for _, v := range *n {
		s = append(s, strconv.Itoa(v))
	}
	return strings.Join(s, ",")
}

// Set replaces the numbers.
func (n *numbers) Set(text string) error {
	var out []int
	for f := range strings.SplitSeq(text, ",") {
		v, err := strconv.Atoi(strings.TrimSpace(f))
		if err != nil || v < 1 {
			return fmt.Errorf("%q: want positive integers with commas", f)
		}
		out = append(out, v)
	}
	*n = out
	return nil
}

// words is a flag of words with commas.
type words []string

// String is the flag's text.
func (w *words) String() string { return strings.Join(*w, ",") }

// Set replaces the words.
func (w *words) Set(text string) error {
	*w = nil
	for f := range strings.SplitSeq(text, ",") {
		if f = strings.TrimSpace(f); f != "" {
			*w = append(*w, f)
		}
	}
	return nil
}
