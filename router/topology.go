package router

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"pgproxy/config"
)

// began is the zero of Nanotime.
var began = time.Now()

// Nanotime returns nanoseconds on the process's monotonic clock, above 0. All
// stamps of a Topology and of acknowledged writes are in it.
func Nanotime() int64 { return int64(time.Since(began)) + 1 }

// Role is what a server is at the moment.
type Role uint8

// The roles of a server.
const (
	RoleUnknown Role = iota // not asked yet, or it did not answer
	RolePrimary
	RoleReplica
)

// String returns the word that the console shows.
func (r Role) String() string {
	switch r {
	case RolePrimary:
		return "primary"
	case RoleReplica:
		return "replica"
	default:
		return "unknown"
	}
}

// Server is one server as it was last seen. Load is shared and changes; all
// else is frozen.
type Server struct {
	Addr   string
	Role   Role
	Up     bool          // the last checks were answered
	Lag    time.Duration // of a replica: how old its newest replayed transaction is
	Weight int           // share of the reads, from 1
	Groups []string

	// Covered is the stamp of the newest sample of the primary's WAL position
	// that this replica has replayed: every write that was acknowledged before
	// that moment can be read here. 0 is none.
	Covered int64

	// Timeline and LSN are where its WAL is: of a primary, what it has inserted; of
	// a replica, what it has replayed. Positions of two servers can be compared only
	// on one timeline. 0 is not known.
	Timeline uint32
	LSN      uint64

	// Load counts the leases of the server, over all databases.
	Load *atomic.Int64
}

// Topology is a picture of one database's servers, in the order of its
// configuration. It is frozen; a change makes a new one.
type Topology struct {
	Generation uint64 // counts the pictures of this database
	System     string // the cluster's system identifier; "" is not known
	Servers    []Server
	Turn       *atomic.Uint64 // shared by all pictures of this database
}

// Policy is the configuration that a choice depends on.
type Policy struct {
	Split         config.SplitMode
	MaxReplicaLag time.Duration // 0 is no limit
	PrimaryReads  config.PrimaryReads
	LoadBalance   config.LoadBalance
}

// Request is one statement or transaction that wants a server.
type Request struct {
	Plan *Plan
	// LastWrite is the stamp of the acknowledged write that a read must see; 0
	// is none.
	LastWrite int64
	// Avoid is the address of a server that has just failed to answer; "" is none.
	Avoid string
}

// Choice is a server for a Request. Server is -1 if none can serve it now:
// Reason says why, and a newer Topology may have one.
type Choice struct {
	Server int // index of Topology.Servers
	Role   Role
	Reason Reason
}

// Reasons of choices.
const (
	chosePrimary      Reason = "primary: not proved a read"
	chosePrimaryHint  Reason = "primary: hint"
	choseRefused      Reason = "primary: a standby has refused it"
	choseSplitOff     Reason = "primary: read_write_split is off"
	choseNoHint       Reason = "primary: read_write_split is hinted, and there is no hint"
	choseReplica      Reason = "replica: read"
	choseReplicaHint  Reason = "replica: hint"
	choseGroup        Reason = "group: hint"
	choseAny          Reason = "any: read_write_split is any"
	choseShare        Reason = "primary: takes its share of the reads"
	choseNoReplica    Reason = "primary: no replica is up"
	choseLag          Reason = "primary: every replica lags more than max_replica_lag"
	choseBehind       Reason = "primary: no replica has replayed the last write yet"
	choseNoGroup      Reason = "primary: no server of the group is up"
	refusedAny        Reason = "no server is up"
	refusedPrimary    Reason = "no primary is up"
	refusedTwo        Reason = "more than one server says that it is the primary"
	refusedNoReplica  Reason = "no replica is up, and primary_reads is never"
	refusedLag        Reason = "every replica lags more than max_replica_lag, and primary_reads is never"
	refusedBehind     Reason = "no replica has replayed the last write yet, and primary_reads is never"
	refusedNoGroup    Reason = "no server of the group is up, and primary_reads is never"
	targetPrimary            = "primary"
	targetReplica            = "replica"
	maxComparableLoad        = 1 << 40
)

// Choose picks a server. It allocates nothing. Any number of goroutines may
// call it.
func (t *Topology) Choose(p Policy, r Request) Choice {
	plan := r.Plan
	hint := plan.Target
	switch {
	case p.Split == config.SplitAny:
		return t.any(p)
	case hint == targetPrimary:
		return t.primary(chosePrimaryHint)
	case plan.refused.Load() != nil:
		return t.primary(choseRefused)
	case plan.Class == ClassPrimary && (hint == "" || !plan.hintable()):
		return t.primary(chosePrimary)
	case p.Split == config.SplitOff:
		return t.primary(choseSplitOff)
	case p.Split == config.SplitHinted && hint == "":
		return t.primary(choseNoHint)
	}
	group := hint
	reason := choseReplica
	switch hint {
	case "":
	case targetReplica:
		group, reason = "", choseReplicaHint
	default:
		reason = choseGroup
	}
	c := candidates{t: t, policy: p, lastWrite: r.LastWrite, avoid: r.Avoid, group: group, share: p.PrimaryReads == config.PrimaryReadsShare && hint == ""}
	i := c.pick()
	switch {
	case i >= 0 && t.Servers[i].Role == RolePrimary && group == "":
		return Choice{i, RolePrimary, choseShare}
	case i >= 0:
		return Choice{i, t.Servers[i].Role, reason}
	}
	fallback, refused := c.why()
	if p.PrimaryReads == config.PrimaryReadsNever {
		return Choice{-1, RoleUnknown, refused}
	}
	return t.primary(fallback)
}

// any picks among all servers that are up, whatever they are. The choice is called
// the primary, as whatever begins there goes on there.
func (t *Topology) any(p Policy) Choice {
	c := candidates{t: t, policy: p, all: true}
	if i := c.pick(); i >= 0 {
		return Choice{i, RolePrimary, choseAny}
	}
	return Choice{-1, RoleUnknown, refusedAny}
}

// hintable reports whether a hint may send a statement to a replica although it
// is not proved a read: a SELECT that may call a function which writes. A
// standby refuses it if it does.
func (p *Plan) hintable() bool { return p.Tag == "SELECT" && p.Effects&^EffectWrite == 0 }

// primary chooses the one server that takes writes.
func (t *Topology) primary(why Reason) Choice {
	found := -1
	for i := range t.Servers {
		s := &t.Servers[i]
		if s.Role != RolePrimary || !s.Up {
			continue
		}
		if found >= 0 {
			return Choice{-1, RoleUnknown, refusedTwo}
		}
		found = i
	}
	if found < 0 {
		return Choice{-1, RoleUnknown, refusedPrimary}
	}
	return Choice{found, RolePrimary, why}
}

// candidates are the servers that may run one read.
type candidates struct {
	t         *Topology
	policy    Policy
	lastWrite int64
	group     string // "" is any replica
	avoid     string // address of a server that is not usable
	share     bool   // the primary is a candidate as well
	all       bool   // whatever is up is one
}

func (c *candidates) usable(s *Server) bool {
	if !s.Up || c.avoid != "" && s.Addr == c.avoid || c.group != "" && !slices.Contains(s.Groups, c.group) {
		return false
	}
	if c.all {
		return true
	}
	switch s.Role {
	case RolePrimary:
		return c.share || c.group != ""
	case RoleReplica:
		return !c.lags(s) && s.Covered >= c.lastWrite
	}
	return false
}

func (c *candidates) lags(s *Server) bool {
	return c.policy.MaxReplicaLag > 0 && s.Lag > c.policy.MaxReplicaLag
}

// pick returns the index of a usable server, or -1.
func (c *candidates) pick() int {
	switch c.policy.LoadBalance {
	case config.LoadBalanceRoundRobin:
		return c.byWeight(func(sum uint64) uint64 { return c.t.Turn.Add(1) % sum })
	case config.LoadBalanceRandom:
		return c.byWeight(rand.Uint64N)
	case config.LoadBalanceFirst:
		return slices.IndexFunc(c.t.Servers, func(s Server) bool { return c.usable(&s) })
	}
	return c.leastConn()
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
func (c *candidates) why() (fallback, refused Reason) {
	if c.group != "" {
		return choseNoGroup, refusedNoGroup
	}
	fallback, refused = choseNoReplica, refusedNoReplica
	for i := range c.t.Servers {
		s := &c.t.Servers[i]
		switch {
		case !s.Up || s.Role != RoleReplica:
		case c.lags(s):
			if fallback == choseNoReplica {
				fallback, refused = choseLag, refusedLag
			}
		default:
			return choseBehind, refusedBehind
		}
	}
	return fallback, refused
}
