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
const (
	rolePrimary = "primary"
	roleReplica = "replica"
)

func (m *Metrics) healthz(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") }

// readyz answers whether clients may be sent here: in general or, with
// ?database=NAME and perhaps &target=primary, replica or a group, for one purpose.
func (m *Metrics) readyz(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch database, target := q.Get("database"), q.Get("target"); {
	case database != "":
		m.answer(w, database, target)
	case target != "":
		say(w, http.StatusBadRequest, "target without database")
	default:
		verdict(w, m.unready())
	}
}

// targetz answers as Patroni's /primary and /replica do, for ?database=NAME, or for
// all databases.
func (m *Metrics) targetz(target string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		m.answer(w, r.URL.Query().Get("database"), target)
	}
}

// answer says whether a database, or all if it is "", can serve a target; "" is
// what the database as a whole needs.
func (m *Metrics) answer(w http.ResponseWriter, database, target string) {
	why, cfg := m.closed()
	if why != "" || cfg == nil {
		verdict(w, why)
		return
	}
	names := slices.Sorted(maps.Keys(cfg.Databases))
	if database != "" {
		db, ok := cfg.Database(database)
		if !ok {
			say(w, http.StatusNotFound, fmt.Sprintf("no database %q", database))
			return
		}
		if target != "" && target != rolePrimary && target != roleReplica && !db.HasGroup(target) {
			say(w, http.StatusNotFound, fmt.Sprintf("database %q has no group %q", database, target))
			return
		}
		names = []string{db.Name}
	}
	v := m.look()
	for _, name := range names {
		if why := v.lacks(cfg.Databases[name], target); why != "" {
			verdict(w, fmt.Sprintf("database %q: %s", name, why))
			return
		}
	}
	verdict(w, "")
}

// verdict says ok, or why not.
func verdict(w http.ResponseWriter, why string) {
	if why != "" {
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

// Ready reports whether /readyz says so.
func (m *Metrics) Ready() bool { return m.unready() == "" }

// unready says in one line why no client should be sent here, or "".
func (m *Metrics) unready() string {
	why, cfg := m.closed()
	if why != "" || cfg == nil {
		return why
	}
	v := m.look()
	for _, name := range slices.Sorted(maps.Keys(cfg.Databases)) {
		if why := v.lacks(cfg.Databases[name], ""); why != "" {
			return fmt.Sprintf("database %q: %s", name, why)
		}
	}
	return ""
}

// closed says why no client at all should be sent here, or "". The configuration
// is nil where nothing is known of servers.
func (m *Metrics) closed() (why string, cfg *config.Config) {
	s := m.server.Load()
	switch {
	case s == nil:
		return "starting", nil
	case s.Draining():
		return "shutting down", nil
	case m.opt.Monitor == nil:
		return "", nil
	}
	return "", s.Settings().Config
}

// view is what is known of all servers at a moment.
type view struct {
	up     map[string][]monitor.Status
	states map[string]monitor.State
}

func (m *Metrics) look() view {
	v := view{make(map[string][]monitor.Status), make(map[string]monitor.State)}
	for _, st := range m.opt.Monitor.Status() {
		if st.Up && !st.Fenced {
			v.up[st.Database] = append(v.up[st.Database], st)
		}
	}
	for _, st := range m.opt.Monitor.States() {
		v.states[st.Database] = st
	}
	return v
}

// lacks says what a database lacks for a target. Without one that is a primary, or
// where the configuration has replicas only, any server.
func (v view) lacks(db *config.Database, target string) string {
	up := v.up[db.Name]
	state := v.states[db.Name]
	replicasOnly := len(db.Patroni) == 0 && !slices.ContainsFunc(db.Servers, func(s config.Server) bool { return s.Role != config.RoleReplica })
	reads := func(s monitor.Status) bool {
		return s.Role.String() == roleReplica && s.Banned.IsZero() && !s.Slow && s.Weight > 0
	}
	switch {
	case len(db.Servers) == 0 && len(db.Patroni) == 0:
		return ""
	case target == "" && replicasOnly && len(up) > 0:
		return ""
	case target == "" && replicasOnly:
		return "no server is up"
	case target == "" || target == rolePrimary:
		switch {
		case state.Stuck():
			return string(state.Halted)
		case slices.ContainsFunc(up, func(s monitor.Status) bool { return s.Role.String() == rolePrimary }):
			return ""
		}
		return "no primary is up"
	case target == roleReplica:
		if !slices.ContainsFunc(up, reads) {
			return "no replica is up that may serve reads"
		}
		return ""
	}
	if !slices.ContainsFunc(up, func(s monitor.Status) bool {
		return slices.Contains(s.Groups, target) && (reads(s) || s.Role.String() == rolePrimary)
	}) {
		return "no server of the group is up that may serve reads"
	}
	return ""
}
