package monitor

import (
	"time"

	"pgproxy/config"
	"pgproxy/router"
)

// rolesLocked works out the role that each server is shown with.
func (e *entry) rolesLocked() {
	for _, s := range e.servers {
		st := &s.state
		if st.up && st.conf.Role != config.RoleReplica && st.says == router.RolePrimary && st.id.timeline > e.reigns[st.id.system] {
			e.reigns[st.id.system] = st.id.timeline
		}
	}
	for _, s := range e.servers {
		role, odd := e.roleLocked(&s.state)
		e.noteRoleLocked(s, role)
		e.noteOddLocked(s, odd)
	}
}

// The oddities of a server's role.
const (
	oddFixed   = "the server is not what the file says"
	oddFenced  = "a primary with a newer timeline was seen, the server is not used"
	oddForeign = "the server belongs to another cluster than the primary, it is not used"
	oddOld     = "the replica is not known to be on the primary's timeline"
)

// roleLocked returns the role of a server, and what is odd about it.
func (e *entry) roleLocked(st *state) (role router.Role, odd string) {
	switch st.conf.Role {
	case config.RolePrimary:
		role = router.RolePrimary
	case config.RoleReplica:
		role = router.RoleReplica
	}
	switch {
	case role != router.RoleUnknown && st.says != router.RoleUnknown && role != st.says:
		return role, oddFixed
	case role != router.RoleUnknown:
		return role, ""
	case st.says == router.RolePrimary && st.id.timeline != 0 && st.id.timeline < e.reigns[st.id.system]:
		return router.RoleUnknown, oddFenced
	case st.says == router.RoleReplica && e.source != nil && foreign(st.id, e.sourceID):
		return router.RoleUnknown, oddForeign
	case st.says == router.RoleReplica && st.id.timeline != 0 && e.source != nil && e.sourceID.timeline != 0 &&
		st.id.timeline != e.sourceID.timeline:
		return st.says, oddOld
	}
	return st.says, ""
}

// noteRoleLocked takes in the role to show, and logs what has changed.
func (e *entry) noteRoleLocked(s *server, role router.Role) {
	st := &s.state
	was := st.shown
	st.shown = role
	if was != role {
		st.changed = time.Now()
	}
	if st.checks == 0 {
		return
	}
	up := st.up
	switch {
	case up && (!st.wasUp || !st.asked):
		e.notes = append(e.notes, func() { e.log.Info("server is up", "server", s.addr, "role", role.String()) })
	case up && was != role:
		e.notes = append(e.notes, func() {
			e.log.Info("server changed its role", "server", s.addr, "was", was.String(), "role", role.String())
		})
	}
	st.asked, st.wasUp = true, up
}

// noteOddLocked logs an oddity once, until it changes.
func (e *entry) noteOddLocked(s *server, odd string) {
	st := &s.state
	if !st.up || odd == st.warned {
		return
	}
	st.warned = odd
	if odd == "" {
		return
	}
	says, timeline := st.says.String(), st.id.timeline
	e.notes = append(e.notes, func() {
		e.log.Warn("server has an odd role", "server", s.addr, "says", says, "timeline", timeline, "reason", odd)
	})
}
