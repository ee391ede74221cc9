package monitor

import (
	"time"

	"pgproxy/config"
	"pgproxy/router"
)

// rolesLocked works out the role that each server is shown with, and whether there
// is a primary at all.
func (e *entry) rolesLocked() {
	e.clusterLocked()
	for _, s := range e.servers {
		st := &s.state
		if st.up && st.conf.Role != config.RoleReplica && st.says == router.RolePrimary && !e.foreignLocked(st) {
			e.reignLocked(s, st.id)
		}
	}
	for _, s := range e.servers {
		role, odd := e.roleLocked(s)
		s.state.shut = odd == oddFenced || odd == oddForeign || odd == oddClusters || odd == oddPatroni || odd == oddSame
		e.noteRoleLocked(s, role)
		e.noteOddLocked(s, odd)
	}
	e.contestLocked()
	e.endHoldLocked()
}

// reignLocked notes that a primary was seen on a timeline.
func (e *entry) reignLocked(s *server, id identity) {
	was := e.reigns[id.system]
	if id.timeline <= was {
		return
	}
	e.reigns[id.system] = id.timeline
	if was == 0 {
		return
	}
	e.promotions++
	e.noteLocked(s, "timeline", "a primary was seen on timeline "+decimal(id.timeline)+", before it was "+decimal(was), func() {
		e.log.Info("new timeline", "server", s.addr, "timeline", id.timeline, "was", was)
	})
}

// clusterLocked settles which cluster the servers belong to: the one that the file
// or Patroni names, that of the fixed primary, or that of most servers once all
// have been asked. What is settled stays for as long as the process lives.
func (e *entry) clusterLocked() {
	if e.named != "" {
		e.system = e.named
	}
	if e.system != "" {
		e.mixed = false
		return
	}
	votes, primaries := make(map[string]int), make(map[string]int)
	all := true
	for _, s := range e.servers {
		st := &s.state
		all = all && st.checks > 0
		if st.id.system == "" {
			continue
		}
		votes[st.id.system]++
		if st.says == router.RolePrimary {
			primaries[st.id.system]++
		}
		if st.conf.Role == config.RolePrimary || e.patroni != nil && e.patroni.leader == s.addr {
			e.system = st.id.system
			return
		}
	}
	if !all || len(votes) == 0 {
		e.mixed = len(votes) > 1
		return
	}
	best, ok := most(votes)
	if !ok {
		best, ok = most(primaries)
	}
	e.mixed = !ok
	if ok {
		e.system = best
	}
}

// most returns the key with the highest count; false if several have it.
func most(counts map[string]int) (best string, only bool) {
	n := 0
	for k, v := range counts {
		switch {
		case v > n:
			best, n, only = k, v, true
		case v == n:
			only = false
		}
	}
	return best, only
}

// foreignLocked reports whether a server is known to belong to another cluster.
func (e *entry) foreignLocked(st *state) bool {
	return e.system != "" && st.id.system != "" && st.id.system != e.system
}

// The oddities of a server's role.
const (
	oddFixed    = "the server is not what the file says"
	oddFenced   = "a primary with a newer timeline was seen, the server is not used"
	oddForeign  = "the server belongs to another cluster, it is not used"
	oddClusters = "the servers belong to more than one cluster and nothing says which one is meant (system_identifier), they are not used"
	oddPatroni  = "Patroni calls another server the leader, the server is not used"
	oddNotYet   = "the server is on a newer timeline, but Patroni does not call it the leader yet"
	oddLeader   = "Patroni knows no leader, the server takes no writes"
	oddSame     = "the server is one that is known under another address, it is not used"
	oddOld      = "the replica is not known to be on the primary's timeline"
)

// roleLocked returns the role of a server, and what is odd about it.
func (e *entry) roleLocked(s *server) (role router.Role, odd string) {
	st := &s.state
	switch {
	case e.foreignLocked(st):
		return router.RoleUnknown, oddForeign
	case e.mixed && st.id.system != "":
		return router.RoleUnknown, oddClusters
	}
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
	case st.says == router.RolePrimary:
		return e.primaryLocked(s)
	case st.says == router.RoleReplica && st.id.timeline != 0 && e.source != nil && e.sourceID.timeline != 0 &&
		st.id.timeline != e.sourceID.timeline:
		return st.says, oddOld
	}
	return st.says, ""
}

// primaryLocked is roleLocked of a server that says it is the primary.
func (e *entry) primaryLocked(s *server) (role router.Role, odd string) {
	st := &s.state
	switch {
	case st.id.timeline != 0 && st.id.timeline < e.reigns[st.id.system]:
		return router.RoleUnknown, oddFenced
	case e.patroni.knows() && e.patroni.leader == "":
		return router.RoleUnknown, oddLeader
	case e.patroni.knows() && e.patroni.leader != s.addr && e.overtakesLocked(s):
		if p := e.poller.Load(); p != nil {
			p.kick()
		}
		return router.RoleUnknown, oddNotYet
	case e.patroni.knows() && e.patroni.leader != s.addr:
		return router.RoleUnknown, oddPatroni
	}
	for _, o := range e.servers {
		if o == s {
			break
		}
		if o.state.up && o.state.says == router.RolePrimary && st.started != 0 && o.state.started == st.started && o.state.id.system == st.id.system {
			return router.RoleUnknown, oddSame
		}
	}
	return st.says, ""
}

// overtakesLocked reports whether a primary is on a newer timeline than the one that
// Patroni calls the leader: it has just been promoted.
func (e *entry) overtakesLocked(s *server) bool {
	for _, o := range e.servers {
		if o.addr == e.patroni.leader {
			return s.state.id.timeline > o.state.id.timeline && o.state.id.timeline != 0
		}
	}
	return false
}

// contestLocked looks for several servers that say they are the primary where
// nothing decides between them. Once both have confirmed it they stay contested,
// also while one of them is down, until one says that it is a replica, is
// outranked, or leaves: writes must not go to one and then to the other.
func (e *entry) contestLocked() {
	var rivals []*server
	for _, s := range e.servers {
		if s.state.up && s.state.shown == router.RolePrimary {
			rivals = append(rivals, s)
		}
	}
	switch {
	case len(rivals) < 2:
		e.contested = 0
	case e.contested == 0:
		e.contested = router.Nanotime()
		for _, s := range rivals {
			s.kick(suspectPause)
		}
	default:
		confirmed := true
		for _, s := range rivals {
			confirmed = confirmed && s.state.current != nil && s.state.current.stamp > e.contested
		}
		for _, s := range rivals {
			s.state.rival = s.state.rival || confirmed
		}
	}
	n := 0
	for _, s := range e.servers {
		s.state.rival = s.state.rival && s.state.shown == router.RolePrimary
		if s.state.rival {
			n++
		}
	}
	for _, s := range e.servers {
		s.state.rival = s.state.rival && n > 1
	}
}

// haltedLocked says why no server takes writes, if that is so.
func (e *entry) haltedLocked() router.Reason {
	switch {
	case e.hold != nil:
		return router.HaltedSwitchover
	case e.mixed:
		return router.HaltedClusters
	}
	for _, s := range e.servers {
		if s.state.rival {
			return router.HaltedContest
		}
	}
	return ""
}

// gateLocked tells the pools of servers that must not be used any more, or may be
// again. It comes before the picture that says so, so that no client is lent what
// the picture has ruled out.
func (e *entry) gateLocked() {
	for _, s := range e.servers {
		st := &s.state
		now := admitted
		switch {
		case st.shut:
			now = fenced
		case st.checks == 0:
			continue
		case !st.up:
			now = away
		}
		if st.standing == now {
			continue
		}
		was := st.standing
		st.standing = now
		if e.gate == nil {
			continue
		}
		switch now {
		case fenced:
			e.gate.Fence(e.name, s.addr)
		case away:
			if was == fenced {
				e.gate.Admit(e.name, s.addr)
			}
			e.gate.Leave(e.name, s.addr)
		case admitted:
			e.gate.Admit(e.name, s.addr)
		}
	}
}

// standing is what pools have been told of a server.
type standing uint8

const (
	untold   standing = iota
	admitted          // it may be used
	away              // it is down
	fenced            // it must not be used
)

// noteRoleLocked takes in the role to show, and notes what has changed.
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
		e.noteLocked(s, "up", "as "+role.String(), func() { e.log.Info("server is up", "server", s.addr, "role", role.String()) })
	case up && was != role:
		e.noteLocked(s, "role", role.String()+", before it was "+was.String(), func() {
			e.log.Info("server changed its role", "server", s.addr, "was", was.String(), "role", role.String())
		})
	}
	st.asked, st.wasUp = true, up
}

// noteOddLocked notes an oddity once, until it changes.
func (e *entry) noteOddLocked(s *server, odd string) {
	st := &s.state
	if !st.up && odd != oddFenced || odd == st.warned {
		return
	}
	st.warned = odd
	if odd == "" {
		return
	}
	says, timeline, system := st.says.String(), st.id.timeline, st.id.system
	e.noteLocked(s, "odd", odd, func() {
		e.log.Warn("server has an odd role", "server", s.addr, "says", says, "timeline", timeline, "system", system, "reason", odd)
	})
}

// noteHaltedLocked notes that writes stop, or go on.
func (e *entry) noteHaltedLocked(now router.Reason) {
	if was := e.halted; now != was {
		e.halted = now
		if now == "" {
			e.noteLocked(nil, "halted", "writes may go on: "+string(was)+" is over", func() { e.log.Info("writes go on", "was", string(was)) })
			return
		}
		e.noteLocked(nil, "halted", "writes wait: "+string(now), func() { e.log.Warn("writes wait", "reason", string(now)) })
	}
}
