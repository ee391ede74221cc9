package admin

// listenerColumns are those of SHOW LISTENERS.
var listenerColumns = columns("sssissiiqqqs", "database", "user", "server", "server_pid", "state", "since", "channels", "clients",
	"notifications", "delivered", "reconnects", "last_error")

// showListeners lists the server connections that listen for clients.
func showListeners(c *call) []row {
	var out []row
	for _, l := range c.console.opt.Server.Listeners() {
		state, server, pid, since := "connecting", any(nil), any(nil), any(nil)
		if l.Server != "" {
			state, server, pid, since = "listening", l.Server, int64(l.PID), stamp(l.Since)
		}
		out = append(out, row{
			l.Database, l.User, server, pid, state, since, l.Channels, l.Clients, int64(l.Notifications), int64(l.Delivered),
			int64(l.Reconnects), optional(l.LastError),
		})
	}
	return out
}
