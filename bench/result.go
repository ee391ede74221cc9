package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Result is everything that was measured. Its JSON form is what -json writes.
type Result struct {
	Began      time.Time         `json:"began"`
	Host       Host              `json:"host"`
	PostgreSQL string            `json:"postgresql"`
	Pgbench    string            `json:"pgbench"`
	Versions   map[string]string `json:"versions"` // of the peers, by name
	Options    Options           `json:"options"`
	Commands   map[string]string `json:"commands"` // of the peers, by name
	Configs    map[string]string `json:"configs"`  // of the peers as started last, by name
	Workloads  []*WorkloadResult `json:"workloads"`
	Idle       []*IdleRow        `json:"idle,omitempty"`

	order []string // names of the peers
}

// WorkloadResult has one row for each peer that can do the workload.
type WorkloadResult struct {
	Workload
	Name    string `json:"name"`
	Command string `json:"command"`
	Rows    []*Row `json:"rows"`
}

// Row is one peer in one workload.
type Row struct {
	Peer   string  `json:"peer"`
	Pool   int     `json:"pool,omitempty"`  // server connections, 0 without a proxy
	Error  string  `json:"error,omitempty"` // why it was left out from some round on
	Rounds []Round `json:"rounds"`

	// Medians over the rounds.
	TPS       float64 `json:"tps"`
	CPUMicros float64 `json:"cpu_us"` // for each transaction, 0 without a proxy
	P50Millis float64 `json:"p50_ms"`
	P99Millis float64 `json:"p99_ms"`

	// To Options.Reference in the same round; nil without it, and for itself.
	TPSRatio *Ratio `json:"tps_ratio,omitempty"`
	CPURatio *Ratio `json:"cpu_ratio,omitempty"`

	ResidentBytes int64 `json:"resident_bytes,omitempty"` // at the end of the last round
}

// Round is one peer in one round.
type Round struct {
	TPS          float64 `json:"tps"`
	Transactions int64   `json:"transactions"`
	CPUMicros    float64 `json:"cpu_us"`
	P50Millis    float64 `json:"p50_ms"`
	P99Millis    float64 `json:"p99_ms"`
}

// Ratio is what came out of several rounds.
type Ratio struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// IdleRow is what idle clients cost one proxy: its resident memory with them less
// that before, for each client.
type IdleRow struct {
	Peer        string  `json:"peer"`
	Clients     int     `json:"clients"`
	Error       string  `json:"error,omitempty"`
	BeforeBytes int64   `json:"before_bytes"` // resident memory after the warm-up, without clients
	LoginBytes  float64 `json:"login_bytes"`  // clients that have logged in
	UsedBytes   float64 `json:"used_bytes"`   // and have run one statement
}

// newResult notes what is known before the first round.
func (b *bench) newResult(ctx context.Context) (*Result, error) {
	r := &Result{
		Began: time.Now().Truncate(time.Second), Host: thisHost(), Options: b.opt,
		Versions: make(map[string]string), Commands: make(map[string]string), Configs: make(map[string]string),
	}
	r.Options.PgProxy, r.Options.Base, r.Options.PgBouncer = base(b.opt.PgProxy), base(b.opt.Base), base(b.opt.PgBouncer)
	var err error
	if r.PostgreSQL, err = b.cluster.Primary.Value(ctx, "postgres", "SHOW server_version"); err != nil {
		return nil, err
	}
	if r.Pgbench, err = output(ctx, b.pgbench, "--version"); err != nil {
		return nil, err
	}
	for _, p := range b.peers {
		r.order = append(r.order, p.name)
		if p.path != "" {
			r.Versions[p.name] = p.version
			r.Commands[p.name] = p.command()
		}
	}
	return r, nil
}

// noteConfig keeps a peer's configuration for the report.
func (b *bench) noteConfig(peer, text string) { b.result.Configs[peer] = text }

// loadCommand shows how pgbench is called in a round.
func (b *bench) loadCommand(w Workload) string {
	args := slices.Concat(w.args(b.opt.Seconds), logArgs("FILE", b.opt.Sample),
		[]string{"-h", loopback, "-p", "PORT", "-U", login, database})
	return "pgbench " + strings.Join(args, " ")
}

// summarize fills in medians and ratios.
func (w *WorkloadResult) summarize(to string) {
	var reference *Row
	for _, r := range w.Rows {
		r.TPS = median(column(r.Rounds, func(r Round) float64 { return r.TPS }))
		r.CPUMicros = median(column(r.Rounds, func(r Round) float64 { return r.CPUMicros }))
		r.P50Millis = median(column(r.Rounds, func(r Round) float64 { return r.P50Millis }))
		r.P99Millis = median(column(r.Rounds, func(r Round) float64 { return r.P99Millis }))
		if r.Peer == to {
			reference = r
		}
	}
	if reference == nil {
		return
	}
	for _, r := range w.Rows {
		if r == reference {
			continue
		}
		r.TPSRatio = ratio(r.Rounds, reference.Rounds, func(r Round) float64 { return r.TPS })
		if r.Peer != Direct {
			r.CPURatio = ratio(r.Rounds, reference.Rounds, func(r Round) float64 { return r.CPUMicros })
		}
	}
}

func column(rounds []Round, value func(Round) float64) []float64 {
	var out []float64
	for _, r := range rounds {
		out = append(out, value(r))
	}
	return out
}

// ratio compares round by round; nil if there is nothing to compare.
func ratio(rounds, reference []Round, value func(Round) float64) *Ratio {
	var all []float64
	for i := range min(len(rounds), len(reference)) {
		if below := value(reference[i]); below > 0 {
			all = append(all, value(rounds[i])/below)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return &Ratio{Median: median(all), Min: slices.Min(all), Max: slices.Max(all)}
}

// Failed reports whether a peer failed in anything.
func (r *Result) Failed() bool {
	for _, w := range r.Workloads {
		if slices.ContainsFunc(w.Rows, func(r *Row) bool { return r.Error != "" }) {
			return true
		}
	}
	return slices.ContainsFunc(r.Idle, func(r *IdleRow) bool { return r.Error != "" })
}

// WriteJSON writes the result into a file, whose folder it makes.
func (r *Result) WriteJSON(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("result: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("result: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("result: %w", err)
	}
	return nil
}

// base is a path without its folders; "" stays "".
func base(path string) string {
	if path == "" {
		return ""
	}
	return filepath.Base(path)
}
