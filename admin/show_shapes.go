package admin

var shapeColumns = columns("sssssqss", "hash", "database", "class", "reason", "declaration", "hits", "first_seen", "shape")

// showShapes lists the statements that are remembered: one row for each database
// whose catalog has had its say on it, or one without a database. The most used
// come first.
func showShapes(c *call) []row {
	var out []row
	for _, s := range c.console.opt.Server.Shapes() {
		out = append(out, row{
			s.Hash, optional(s.Database), s.Class, s.Reason, optional(s.Declaration), s.Hits, stamp(s.Since), s.Shape,
		})
	}
	return out
}
