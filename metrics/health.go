package metrics

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"

	"pgproxy/config"
	"pgproxy/monitor"
)

// The words of a server's role, as router.Role writes them.
const rolePrimary = "primary"

func (m *Metrics) healthz(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") }

// readyz answers whether clients may be sent here.
func (m *Metrics) readyz(w http.ResponseWriter, _ *http.Request) {
	if why := m.unready(); why != "" {
		say(w, http.StatusServiceUnavailable, why)
		return
	}
	say(w, http.StatusOK, "ok")
}

func say(w http.ResponseWriter, code int, line string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, line+"\n")
}

// unready says in one line why no client should be sent here, or "".
func (m *Metrics) unready() string {
	s := m.server.Load()
	switch {
	case s == nil:
		return "starting"
	case s.Draining():
		return "shutting down"
	case m.opt.Monitor == nil:
		return ""
	}
	cfg := s.Settings().Config
	up := make(map[string][]monitor.Status)
	for _, st := range m.opt.Monitor.Status() {
		if st.Up {
			up[st.Database] = append(up[st.Database], st)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Databases)) {
		if why := databaseUnready(cfg.Databases[name], up[name]); why != "" {
			return fmt.Sprintf("database %q: %s", name, why)
		}
	}
	return ""
}

// databaseUnready says what a database lacks: a primary, or where the
// configuration has replicas only, any server.
func databaseUnready(db *config.Database, up []monitor.Status) string {
	replicasOnly := !slices.ContainsFunc(db.Servers, func(s config.Server) bool { return s.Role != config.RoleReplica })
	switch {
	case len(db.Servers) == 0:
		return ""
	case replicasOnly && len(up) == 0:
		return "no server is up"
	case replicasOnly || slices.ContainsFunc(up, func(s monitor.Status) bool { return s.Role.String() == rolePrimary }):
		return ""
	}
	return "no primary is up"
}
