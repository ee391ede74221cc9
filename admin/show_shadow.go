package admin

import "time"

var shadowColumns = columns("sqqqqqqqqsss", "database", "runs", "same", "differs", "changed", "failed", "skipped",
	"primary_us", "replica_us", "last_difference", "last_error", "shape")

// showShadow shows what has come of read_write_split = "shadow".
func showShadow(c *call) []row {
	var out []row
	for _, s := range c.console.opt.Server.Shadow() {
		mean := func(d time.Duration) int64 { return int64(d/time.Microsecond) / int64(max(s.Same, 1)) }
		out = append(out, row{
			s.Database, s.Runs, s.Same, s.Differs, s.Changed, s.Failed, s.Skipped, mean(s.Primary), mean(s.Replica),
			stamp(s.Last), optional(s.Error), s.Shape,
		})
	}
	return out
}
