package admin

// hostColumns are those of SHOW HOSTS.
var hostColumns = columns("siiii", "host", "port", "max_connections", "current_connections", "waiting_pools")

// showHosts counts the connections to each server, over all pools.
func showHosts(c *call) []row {
	var out []row
	for _, h := range c.console.opt.Pools.Hosts() {
		at := splitAddr(h.Server)
		out = append(out, row{at.addr, at.port, h.Most, h.Used, h.Waiting})
	}
	return out
}
