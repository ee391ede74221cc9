package admin

var routeColumns = columns("sssq", "database", "role", "reason", "count")

// showRoutes lists how often statements went to which role, and why.
func showRoutes(c *call) []row {
	var out []row
	for _, r := range c.console.opt.Server.Routes() {
		out = append(out, row{r.Database, r.Role.String(), string(r.Reason), r.Count})
	}
	return out
}
