package admin

import (
	"maps"
	"slices"

	"pgproxy/wire"
)

// Names of the counts in each of PgBouncer's tables, in the order of counts.
var (
	statNames = []string{
		"server_assignment_count", "xact_count", "query_count", "received", "sent", "xact_time", "query_time", "wait_time",
		"client_parse_count", "server_parse_count", "bind_count",
	}
	totalNames = []string{
		"server_assignment_count", "xact_count", "query_count", "client_bytes", "server_bytes", "xact_time", "query_time",
		"wait_time", "ps_client_parse_count", "ps_server_parse_count", "ps_bind_count",
	}

	statColumns = numbers(append(prefixed("total_", statNames...),
		prefixed("avg_", "server_assignment_count", "xact_count", "query_count", "recv", "sent", "xact_time", "query_time", "wait_time",
			"client_parse_count", "server_parse_count", "bind_count")...))
	statTotalColumns = numbers([]string{
		"server_assignment_count", "xact_count", "query_count", "bytes_received", "bytes_sent", "xact_time", "query_time", "wait_time",
		"client_parse_count", "server_parse_count", "bind_count",
	})
	statAverageColumns = numbers([]string{
		"server_assignment_count", "xact_count", "query_count", "bytes_received", "bytes_sent", "xact_time", "query_time", "wait_time",
		"avg_client_parse_count", "avg_server_parse_count", "avg_bind_count",
	})
)

func prefixed(prefix string, names ...string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = prefix + n
	}
	return out
}

// numbers makes the columns of a table of numbers for each database.
func numbers(names []string) []wire.Column {
	cols := columns("s", "database")
	for _, n := range names {
		cols = append(cols, wire.Column{Name: n, OID: typeNumeric})
	}
	return cols
}

// byDatabase makes a row for each database.
func byDatabase(totals map[string]counts, cells func(database string) []uint64) []row {
	var out []row
	for _, db := range slices.Sorted(maps.Keys(totals)) {
		r := row{db}
		for _, n := range cells(db) {
			r = append(r, n)
		}
		out = append(out, r)
	}
	return out
}

func showStats(c *call) []row {
	totals, avg := c.console.totals(), c.console.periodAverages()
	return byDatabase(totals, func(db string) []uint64 {
		t, a := totals[db], avg[db]
		return append(t[:], a[:]...)
	})
}

func showStatsTotals(c *call) []row {
	totals := c.console.totals()
	return byDatabase(totals, func(db string) []uint64 { t := totals[db]; return t[:] })
}

func showStatsAverages(c *call) []row {
	avg := c.console.periodAverages()
	return byDatabase(c.console.totals(), func(db string) []uint64 { a := avg[db]; return a[:] })
}

// showTotals sums over all databases.
func showTotals(c *call) []row {
	var out []row
	for _, x := range []struct {
		prefix string
		of     map[string]counts
	}{{"total_", c.console.totals()}, {"avg_", c.console.periodAverages()}} {
		var sum counts
		for _, n := range x.of {
			sum.add(&n)
		}
		for i, name := range totalNames {
			out = append(out, row{x.prefix + name, sum[i]})
		}
	}
	return out
}
