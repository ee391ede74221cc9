package bench

import (
	"encoding/json"
	"flag"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files")

// exampleResult is a result with everything in it that the report shows.
func exampleResult() *Result {
	rounds := func(scale float64) []Round {
		var out []Round
		for _, f := range []float64{1, 1.2, 0.9} {
			out = append(out, Round{TPS: 20000 * scale * f, Transactions: int64(1e5 * f), CPUMicros: 20 / scale * f, P50Millis: f, P99Millis: 3 * f})
		}
		return out
	}
	direct := rounds(2)
	for i := range direct {
		direct[i].CPUMicros = 0
	}
	first := Workload{"select", "simple", 16}
	second := Workload{"select", "prepared", 256}
	o := Default()
	o.Rounds, o.Pools, o.Profile, o.PgBouncer = 3, []int{8, 20}, "profiles", "pgbouncer"
	r := &Result{
		Began:      time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Host:       Host{Cores: 2, CPU: "Some CPU", MemoryMiB: 8000, Kernel: "6.1", Go: "go1.26"},
		PostgreSQL: "15.1", Pgbench: "pgbench (PostgreSQL) 15.1",
		Versions: map[string]string{PgProxy: "pgproxy 1", PgBouncer: "PgBouncer 1.18.0"},
		Commands: map[string]string{PgProxy: "pgproxy run -config pgproxy.toml", PgBouncer: "pgbouncer pgbouncer.ini"},
		Configs:  map[string]string{},
		Options:  o,
		Workloads: []*WorkloadResult{
			{Workload: first, Name: first.String(), Command: "pgbench -c 16", Rows: []*Row{
				{Peer: PgProxy, Pool: 20, Rounds: rounds(1.25)},
				{Peer: PgBouncer, Pool: 8, Rounds: rounds(1)},
				{Peer: Direct, Rounds: direct},
			}},
			{Workload: second, Name: second.String(), Command: "pgbench -c 256", Rows: []*Row{
				{Peer: PgProxy, Pool: 20, Rounds: rounds(1)[:2], Error: "exit status 2:\nclient 3 aborted"},
				{Peer: Direct, Error: "no answer"},
			}},
		},
		Idle: []*IdleRow{
			{Peer: PgProxy, Clients: 4000, BeforeBytes: 30 << 20, LoginBytes: 4321.4, UsedBytes: 5000},
			{Peer: PgBouncer, Clients: 4000, Error: "too many"},
		},
		order: []string{PgProxy, PgBouncer, Direct},
	}
	for _, w := range r.Workloads {
		w.summarize(PgBouncer)
	}
	return r
}

func TestMarkdown(t *testing.T) {
	got := exampleResult().Markdown()
	path := filepath.Join("testdata", "report.md")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the report differs from %s (-update writes it):\n%s", path, got)
	}
}

func TestSummarize(t *testing.T) {
	r := exampleResult()
	rows := r.Workloads[0].Rows
	near := func(name string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-9 {
			t.Errorf("%s: %g, want %g", name, got, want)
		}
	}
	near("tps", rows[0].TPS, 25000)
	near("CPU", rows[0].CPUMicros, 16)
	near("p99", rows[0].P99Millis, 3)
	near("tps ratio", rows[0].TPSRatio.Median, 1.25)
	near("CPU ratio", rows[0].CPURatio.Max, 0.8)
	if rows[1].TPSRatio != nil || rows[1].CPURatio != nil {
		t.Error("PgBouncer has a ratio to itself")
	}
	if rows[2].TPSRatio == nil || rows[2].CPURatio != nil {
		t.Error("direct: want a ratio of tps and none of CPU")
	}
	if r.Workloads[1].Rows[0].TPSRatio != nil {
		t.Error("a ratio to PgBouncer in a workload without it")
	}
	if !r.Failed() {
		t.Error("a failed peer is not reported")
	}
}

func TestRatio(t *testing.T) {
	tps := func(values ...float64) []Round {
		var out []Round
		for _, v := range values {
			out = append(out, Round{TPS: v})
		}
		return out
	}
	of := func(r Round) float64 { return r.TPS }
	for _, tt := range []struct {
		name              string
		rounds, reference []Round
		want              *Ratio
	}{
		{"by round", tps(10, 30, 20), tps(10, 10, 40), &Ratio{1, 0.5, 3}},
		{"fewer rounds", tps(10), tps(20, 10), &Ratio{0.5, 0.5, 0.5}},
		{"nothing", nil, tps(20), nil},
		{"reference without value", tps(10), tps(0), nil},
	} {
		if got := ratio(tt.rounds, tt.reference, of); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestOrderAlternates(t *testing.T) {
	for round, want := range [][]int{{0, 1, 2}, {1, 2, 0}, {2, 0, 1}, {0, 1, 2}} {
		if got := order(3, round); !reflect.DeepEqual(got, want) {
			t.Errorf("round %d: %v, want %v", round, got, want)
		}
	}
}

func TestWriteJSON(t *testing.T) {
	want := exampleResult()
	path := filepath.Join(t.TempDir(), "new", "result.json")
	checkError(t, want.WriteJSON(path), "")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got Result
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Workloads, want.Workloads) || !reflect.DeepEqual(got.Idle, want.Idle) {
		t.Errorf("read back:\n%s", text)
	}
}

func TestField(t *testing.T) {
	const text = "processor\t: 0\nmodel name\t: Some CPU: fast\nMemTotal:       1024 kB\n"
	for name, want := range map[string]string{"model name": "Some CPU: fast", "MemTotal": "1024 kB", "absent": ""} {
		if got := field(text, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
