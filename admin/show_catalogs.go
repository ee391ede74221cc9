package admin

import "time"

var catalogColumns = columns("ssssqiiqqs", "database", "dbname", "state", "read", "took_us", "functions", "relations", "readings", "failures", "last_error")

// showCatalogs lists the catalogs that reads are proved from.
func showCatalogs(c *call) []row {
	if c.console.opt.Catalogs == nil {
		return nil
	}
	var out []row
	for _, s := range c.console.opt.Catalogs.Catalogs() {
		out = append(out, row{
			s.Database, s.DBName, string(s.State), stamp(s.Read), int64(s.Took / time.Microsecond), s.Functions, s.Relations,
			s.Readings, s.Failures, optional(s.LastError),
		})
	}
	return out
}
