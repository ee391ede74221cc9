package bench

import (
	"fmt"
	"strconv"
	"strings"
)

// none stands in a cell that has no value.
const none = "-"

// Markdown is the report.
func (r *Result) Markdown() string {
	var b strings.Builder
	r.header(&b)
	if len(r.Workloads) > 0 {
		r.loadTable(&b)
	}
	if len(r.Idle) > 0 {
		r.idleTable(&b)
	}
	r.errors(&b)
	r.commands(&b)
	return b.String()
}

func (r *Result) header(b *strings.Builder) {
	o, h := r.Options, r.Host
	b.WriteString("# pgproxy beside its peers\n\n")
	fmt.Fprintf(b, "- %s, %d cores, %s, %d MiB, Linux %s, %s\n", r.Began.UTC().Format("2006-01-02 15:04 UTC"),
		h.Cores, orNone(h.CPU), h.MemoryMiB, orNone(h.Kernel), h.Go)
	fmt.Fprintf(b, "- PostgreSQL %s, %s, %s; load from %s\n", r.PostgreSQL, count(1, "primary"), count(o.Replicas, "replica"), r.Pgbench)
	for _, name := range r.order {
		if v := r.Versions[name]; v != "" {
			fmt.Fprintf(b, "- %s: %s\n", name, v)
		}
	}
	fmt.Fprintf(b, "- scale %d, logins by %s, %s\n", o.Scale, o.Auth, poolText(o.Pools))
	if len(r.Workloads) > 0 {
		fmt.Fprintf(b, "- medians of %s of %d s after 1 s of warm-up; in parentheses the lowest and the highest round\n",
			count(o.Rounds, "round"), o.Seconds)
	}
	if o.Replicas > 0 {
		b.WriteString("- pgproxy and Pgpool-II send reads to the replicas, the others use the primary only\n")
	}
	if o.Profile != "" {
		b.WriteString("- pgproxy wrote CPU profiles meanwhile, which costs it a little\n")
	}
}

func poolText(pools []int) string {
	if len(pools) == 1 {
		return fmt.Sprintf("pools of %d server connections for each server", pools[0])
	}
	return fmt.Sprintf("pools: the best of %s for PgBouncer, the largest for others", (*numbers)(&pools))
}

func (r *Result) loadTable(b *strings.Builder) {
	t := table{{"workload", "peer", "pool", "tps", "tps to " + r.Options.Reference, "CPU us/tx", "CPU to " + r.Options.Reference, "p50 ms", "p99 ms"}}
	for _, w := range r.Workloads {
		for _, row := range w.Rows {
			if len(row.Rounds) == 0 {
				t = append(t, []string{w.Name, row.Peer, none, "failed", none, none, none, none, none})
				continue
			}
			cells := []string{
				w.Name, row.Peer, none, fmt.Sprintf("%.0f", row.TPS), row.TPSRatio.cell(), none,
				row.CPURatio.cell(), fmt.Sprintf("%.2f", row.P50Millis), fmt.Sprintf("%.2f", row.P99Millis),
			}
			if row.Pool > 0 {
				cells[2] = strconv.Itoa(row.Pool)
			}
			if row.Peer != Direct {
				cells[5] = fmt.Sprintf("%.1f", row.CPUMicros)
			}
			if row.Error != "" {
				cells[1] += " (failed)"
			}
			t = append(t, cells)
		}
	}
	b.WriteByte('\n')
	t.write(b, 2)
}

// cell is the ratio with its spread.
func (r *Ratio) cell() string {
	if r == nil {
		return none
	}
	return fmt.Sprintf("%.2f (%.2f-%.2f)", r.Median, r.Min, r.Max)
}

func (r *Result) idleTable(b *strings.Builder) {
	t := table{{"idle clients", "peer", "resident before, MiB", "bytes/client, logged in", "bytes/client, after a statement"}}
	for _, row := range r.Idle {
		cells := []string{strconv.Itoa(row.Clients), row.Peer, none, "failed", none}
		if row.Error == "" {
			cells = append(cells[:2], fmt.Sprintf("%.1f", float64(row.BeforeBytes)/(1<<20)),
				fmt.Sprintf("%.0f", row.LoginBytes), fmt.Sprintf("%.0f", row.UsedBytes))
		}
		t = append(t, cells)
	}
	b.WriteByte('\n')
	t.write(b, 2)
}

func (r *Result) errors(b *strings.Builder) {
	var lines []string
	for _, w := range r.Workloads {
		for _, row := range w.Rows {
			if row.Error != "" {
				lines = append(lines, fmt.Sprintf("- %s, %s: %s\n", w.Name, row.Peer, oneLine(row.Error)))
			}
		}
	}
	for _, row := range r.Idle {
		if row.Error != "" {
			lines = append(lines, fmt.Sprintf("- %d idle clients, %s: %s\n", row.Clients, row.Peer, oneLine(row.Error)))
		}
	}
	if len(lines) > 0 {
		b.WriteString("\nFailed:\n\n" + strings.Join(lines, ""))
	}
}

func (r *Result) commands(b *strings.Builder) {
	b.WriteString("\nCommands:\n\n")
	for _, name := range r.order {
		if c := r.Commands[name]; c != "" {
			fmt.Fprintf(b, "    %s\n", c)
		}
	}
	for _, w := range r.Workloads {
		fmt.Fprintf(b, "    %s\n", w.Command)
	}
}

// table is a Markdown table; the first row is the head.
type table [][]string

// write aligns the columns for readers of the plain text. Those from column
// numbers on are numbers and stand at the right.
func (t table) write(b *strings.Builder, numbers int) {
	widths := make([]int, len(t[0]))
	for _, row := range t {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	for n, row := range t {
		for i, cell := range row {
			width := widths[i]
			if i < numbers {
				width = -width
			}
			fmt.Fprintf(b, "| %*s ", width, cell)
		}
		b.WriteString("|\n")
		if n > 0 {
			continue
		}
		for i, width := range widths {
			if i < numbers {
				b.WriteString("|" + strings.Repeat("-", width+2))
			} else {
				b.WriteString("|" + strings.Repeat("-", width+1) + ":")
			}
		}
		b.WriteString("|\n")
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
