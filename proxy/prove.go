package proxy

import (
	"strings"

	"pgproxy/router"
	"pgproxy/wire"
)

// What the catalog says of the session's statements. A plan that is kept, with a
// prepared statement or in the router, is one by its text alone; it is proved each
// time that it is used, since the catalog may have changed, or the session's
// search_path.

// proved returns the plan that holds in the session's database now.
func (s *Session) proved(draft *router.Plan) *router.Plan {
	if s.prover == nil || draft == nil {
		return draft
	}
	if settings := s.settings.Load(); settings != s.pathFor || s.prover.Stale(s.path) {
		s.path, s.pathFor = s.searchPath(), settings
	}
	return s.prover.Prove(draft, s.path)
}

// searchPath works out what unqualified names mean.
func (s *Session) searchPath() *router.Path {
	login := s.user
	if s.db.User != "" {
		login = s.db.User
	}
	settings := s.settings.Load()
	role, ok := settings.Get("role")
	if !ok || role == "none" {
		role = login
	}
	value, set := settings.Get("search_path")
	if s.db.ConnectQuery != "" && (!set || strings.Contains(value, "$user")) {
		return s.prover.AnyPath() // it may have set the search_path, or the role
	}
	return s.prover.Path(login, role, value, set)
}

// endDDL forgets that the transaction changes the catalog when it is over: a
// client may keep its connection for longer.
func (s *Session) endDDL() {
	if st := s.lease.State(); st.Status == wire.TxIdle && !st.Owing {
		s.ddl.Store(nil)
	}
}
