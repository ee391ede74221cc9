package router

import (
	"math/rand/v2"
	"slices"

	"pgproxy/config"
)

// Policy is the configuration that a choice depends on.
type Policy struct {
	Split        config.SplitMode
	PrimaryReads config.PrimaryReads
	LoadBalance  config.LoadBalance
}

// The words of a target that are no group.
const (
	TargetPrimary = "primary"
	TargetReplica = "replica"
)

// Source says who asked for a target.
type Source uint8

// The sources of a target, the strongest first.
const (
	ByNobody  Source = iota
	ByLocal          // SET LOCAL pgproxy.target
	ByComment        // /* pgproxy: target=... */
	BySet            // SET pgproxy.target
	ByStartup        // -c pgproxy.target=... at login
	ByRule           // [[databases.NAME.rules]]
)

// Request is one statement or transaction that wants a server.
type Request struct {
	Plan   *Plan
	Target string // primary, replica or a group; "" is what the plan says
	By     Source // of Target
	Read   bool   // a transaction block that may begin on a replica, though its BEGIN does not say so
	Seen   Seen
	Avoid  string // address of a server that has just failed to answer; "" is none
}

// Seen is what a read must show at least. Stamps are of Nanotime.
type Seen struct {
	// Floor: a server must show what could be seen on the primary at this moment.
	// 0 is nothing.
	Floor int64
	// Token is a position that covers Floor as well; the zero one is none.
	Token Position
	// Last is when the session last read from the replica On, where it has read
	// since Since: another server must show what could be seen at that moment.
	Last  int64
	On    string
	Since int64
	// Catalog is when the catalog that the plan was proved from was read: a server
	// that is known to be further behind may have other definitions. 0 is none.
	Catalog int64
}

// Choice is a server for a Request. Server is -1 if none can serve it now:
// Reason says why, and a newer Topology may have one.
//
// It is kept to 32 bytes, so that it is passed on in registers: it is on the way of
// each statement, and the stacks of idle clients are what that takes.
type Choice struct {
	Server int // index of Topology.Servers
	Reason Reason
	Role   Role
	Behind bool // not a replica, because those that are there lack what must be seen
}

// Reasons of choices. They are all that there are: they are labels of metrics.
const (
	chosePrimary     Reason = "primary: not proved a read"
	choseSplitOff    Reason = "primary: read_write_split is off"
	choseRefused     Reason = "primary: a standby has refused it"
	ReasonShadow     Reason = "primary: read_write_split is shadow"
	choseNoHint      Reason = "primary: read_write_split is hinted, and there is no hint"
	choseReplica     Reason = "replica: read"
	choseAny         Reason = "any: read_write_split is any"
	choseShare       Reason = "primary: takes its share of the reads"
	choseNoReplica   Reason = "primary: no replica is up"
	choseLag         Reason = "primary: every replica lags more than max_replica_lag"
	choseBehind      Reason = "primary: no replica is known to have replayed what this session must see"
	choseNoGroup     Reason = "primary: no server of the group is up"
	choseGroupLag    Reason = "primary: every server of the group lags more than max_replica_lag"
	choseGroupBehind Reason = "primary: no server of the group is known to have replayed what this session must see"
	refusedAny       Reason = "no server is up"
	refusedPrimary   Reason = "no primary is up"
	HaltedSwitchover Reason = "a switchover is under way"
	HaltedContest    Reason = "more than one server says that it is the primary, on one timeline"
	HaltedClusters   Reason = "the servers belong to more than one cluster"
	refusedTwo       Reason = "more than one server says that it is the primary"
	refusedNoReplica Reason = "no replica is up, and primary_reads is never"
	refusedLag       Reason = "every replica lags more than max_replica_lag, and primary_reads is never"
	refusedBehind    Reason = "no replica is known to have replayed what this session must see, and primary_reads is never"
	refusedNoGroup   Reason = "no server of the group may serve this now, and primary_reads is never"
)

// What a target was obeyed for, by its source.
var (
	chosePrimaryBy = [...]Reason{
		ByLocal: "primary: SET LOCAL pgproxy.target", ByComment: "primary: hint", BySet: "primary: SET pgproxy.target",
		ByStartup: "primary: startup option pgproxy.target", ByRule: "primary: rule",
	}
	choseReplicaBy = [...]Reason{
		ByLocal: "replica: SET LOCAL pgproxy.target", ByComment: "replica: hint", BySet: "replica: SET pgproxy.target",
		ByStartup: "replica: startup option pgproxy.target", ByRule: "replica: rule",
	}
	choseGroupBy = [...]Reason{
		ByLocal: "group: SET LOCAL pgproxy.target", ByComment: "group: hint", BySet: "group: SET pgproxy.target",
		ByStartup: "group: startup option pgproxy.target", ByRule: "group: rule",
	}
)

const maxComparableLoad = 1 << 40

// Choose picks a server. It allocates nothing, keeps nothing of r, and does not change
// it. Any number of goroutines may call it.
func (t *Topology) Choose(p Policy, r *Request) Choice {
	if p.Split == config.SplitAny {
		return t.any(p, r)
	}
	if why := primaryOnly(p, r); why != "" {
		return t.primary(why)
	}
	return t.replica(p, r)
}

// primaryOnly says why only the primary may run what is asked for, whatever there is of
// replicas; "" is no reason.
func primaryOnly(p Policy, r *Request) Reason {
	plan := r.Plan
	switch {
	case r.Target == TargetPrimary:
		return chosePrimaryBy[r.By]
	case plan.refused.Load() != nil:
		return choseRefused
	case plan.Class == ClassPrimary && !r.Read && (r.Target == "" || !plan.Hintable()):
		return chosePrimary
	case p.Split == config.SplitOff:
		return choseSplitOff
	case p.Split == config.SplitShadow:
		return ReasonShadow
	case p.Split == config.SplitHinted && r.Target == "":
		return choseNoHint
	}
	return ""
}

// replica picks among the servers that may run a read.
func (t *Topology) replica(p Policy, r *Request) Choice {
	group := r.Target
	reason := choseReplica
	switch r.Target {
	case "":
	case TargetReplica:
		group, reason = "", choseReplicaBy[r.By]
	default:
		reason = choseGroupBy[r.By]
	}
	c := candidates{
		t: t, policy: p, request: r, group: group,
		share: p.PrimaryReads == config.PrimaryReadsShare && r.Target == "",
	}
	i := c.pick()
	switch {
	case i < 0:
		return c.none()
	case t.Servers[i].Role == RolePrimary && group == "":
		reason = choseShare
	}
	return Choice{Server: i, Role: t.Servers[i].Role, Reason: reason}
}

// none is the choice where no candidate is usable: the primary, unless that is
// forbidden.
func (c *candidates) none() Choice {
	fallback, refused, behind := c.why()
	if c.policy.PrimaryReads == config.PrimaryReadsNever {
		return Choice{Server: -1, Reason: refused, Behind: behind}
	}
	ch := c.t.primary(fallback)
	ch.Behind = behind
	return ch
}

// any picks among all servers that are up, whatever they are. The choice is called
// the primary, as whatever begins there goes on there.
func (t *Topology) any(p Policy, r *Request) Choice {
	c := candidates{t: t, policy: p, request: r, all: true}
	if i := c.pick(); i >= 0 {
		return Choice{Server: i, Role: RolePrimary, Reason: choseAny}
	}
	return Choice{Server: -1, Reason: refusedAny}
}

// Hintable reports whether a hint may send a statement to a replica although it
// is not proved a read: a SELECT that may call a function which writes. A
// standby refuses it if it does.
func (p *Plan) Hintable() bool { return p.Tag == "SELECT" && p.Effects&^EffectWrite == 0 }

// primary chooses the one server that takes writes.
func (t *Topology) primary(why Reason) Choice {
	if t.Halted != "" {
		return Choice{Server: -1, Reason: t.Halted}
	}
	found := -1
	for i := range t.Servers {
		s := &t.Servers[i]
		if s.Role != RolePrimary || !s.Up {
			continue
		}
		if found >= 0 {
			return Choice{Server: -1, Reason: refusedTwo}
		}
		found = i
	}
	if found < 0 {
		return Choice{Server: -1, Reason: refusedPrimary}
	}
	return Choice{Server: found, Role: RolePrimary, Reason: why}
}

// candidates are the servers that may run one read.
type candidates struct {
	t       *Topology
	policy  Policy
	request *Request
	group   string // "" is any replica
	share   bool   // the primary is a candidate as well
	all     bool   // whatever is up is one
}

func (c *candidates) usable(s *Server) bool {
	if !s.Up || c.avoided(s) || !c.member(s) {
		return false
	}
	if c.all {
		return true
	}
	switch s.Role {
	case RolePrimary:
		return (c.share || c.group != "") && c.t.Halted == ""
	case RoleReplica:
		return s.Weight > 0 && !s.Late && c.request.Seen.ShownBy(s)
	}
	return false
}

// avoided reports whether a server has just failed to answer.
func (c *candidates) avoided(s *Server) bool {
	return c.request.Avoid != "" && s.Addr == c.request.Avoid
}

func (c *candidates) member(s *Server) bool {
	return c.group == "" || slices.Contains(s.Groups, c.group)
}

// ShownBy reports whether a replica is known to show all that must be seen.
func (v *Seen) ShownBy(s *Server) bool {
	if s.Covered != 0 && s.Covered < v.Catalog {
		return false
	}
	if s.Covered < v.Floor && !v.Token.reachedBy(s) {
		return false
	}
	return s.Covered >= v.Last || s.Addr == v.On && s.Steady <= v.Since
}

// pick returns the index of a usable server, or -1.
func (c *candidates) pick() int {
	switch c.policy.LoadBalance {
	case config.LoadBalanceRoundRobin:
		return c.byWeight(func(sum uint64) uint64 { return c.t.Turn.Add(1) % sum })
	case config.LoadBalanceRandom:
		return c.byWeight(rand.Uint64N)
	case config.LoadBalanceFirst:
		return c.first()
	}
	return c.leastConn()
}

func (c *candidates) first() int {
	for i := range c.t.Servers {
		if c.usable(&c.t.Servers[i]) {
			return i
		}
	}
	return -1
}

// leastConn picks the server with the fewest leases for its weight; among
// equals, any of them.
func (c *candidates) leastConn() int {
	best, bestLoad, bestWeight, equals := -1, int64(0), int64(1), uint32(0)
	for i := range c.t.Servers {
		s := &c.t.Servers[i]
		if !c.usable(s) {
			continue
		}
		load, weight := min(s.Load.Load()+1, maxComparableLoad), int64(s.Weight)
		switch a, b := load*bestWeight, bestLoad*weight; {
		case best < 0 || a < b:
			best, bestLoad, bestWeight, equals = i, load, weight, 1
		case a == b:
			if equals++; rand.Uint32N(equals) == 0 {
				best, bestLoad, bestWeight = i, load, weight
			}
		}
	}
	return best
}

// byWeight picks the server in whose share of the sum of weights number falls.
func (c *candidates) byWeight(number func(sum uint64) uint64) int {
	sum := uint64(0)
	for i := range c.t.Servers {
		if s := &c.t.Servers[i]; c.usable(s) {
			sum += uint64(s.Weight)
		}
	}
	if sum == 0 {
		return -1
	}
	at := number(sum)
	last := -1
	for i := range c.t.Servers {
		s := &c.t.Servers[i]
		if !c.usable(s) {
			continue
		}
		last = i
		if at < uint64(s.Weight) {
			return i
		}
		at -= uint64(s.Weight)
	}
	return last
}

// why says what keeps every replica from a read: the mildest reason that
// applies to one of them.
func (c *candidates) why() (fallback, refused Reason, behind bool) {
	late := false
	for i := range c.t.Servers {
		s := &c.t.Servers[i]
		switch {
		case !s.Up || s.Role != RoleReplica || !c.member(s) || c.avoided(s):
		case s.Late:
			late = true
		default:
			behind = true
		}
	}
	switch {
	case behind && c.group != "":
		return choseGroupBehind, refusedNoGroup, true
	case behind:
		return choseBehind, refusedBehind, true
	case late && c.group != "":
		return choseGroupLag, refusedNoGroup, false
	case late:
		return choseLag, refusedLag, false
	case c.group != "":
		return choseNoGroup, refusedNoGroup, false
	}
	return choseNoReplica, refusedNoReplica, false
}
