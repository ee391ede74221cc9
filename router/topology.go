package router

import (
	"sync/atomic"
	"time"
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
	Weight int           // share of the reads; 0 is none
	Groups []string

	// Covered is the stamp of the newest sample of the primary's WAL position
	// that this replica has replayed: every write that was acknowledged before
	// that moment can be read here. Of the primary it is that of the newest
	// sample, which LSN is. 0 is none.
	Covered int64

	// Timeline and LSN are where its WAL is: of a primary, what it has inserted; of
	// a replica, what it has replayed. Positions of two servers can be compared only
	// on one timeline. 0 is not known.
	Timeline uint32
	LSN      uint64

	// Horizon is, of a primary that was watched while it was a replica, the
	// transaction id below which all were known to it by then: none of them is given
	// out again. 0 is not known.
	Horizon uint64

	// Late says that the replica lags more than the database allows.
	Late bool

	// Steady is the stamp since when the server is known not to have restarted:
	// what a replica has shown since then it goes on showing. 0 is always.
	Steady int64

	// Load counts the leases of the server, over all databases.
	Load *atomic.Int64
}

// Topology is a picture of one database's servers, in the order of its
// configuration. It is frozen; a change makes a new one.
type Topology struct {
	Generation uint64 // counts the pictures of this database
	Halted     Reason // why no server takes writes, whatever its role; "" is no reason
	System     string // the cluster's system identifier; "" is not known
	Servers    []Server
	Turn       *atomic.Uint64 // shared by all pictures of this database
	Provers    Provers        // shared by all pictures; nil: statements are judged by their text alone
}

// Provers gives what proves the statements of a database, by its name on the
// servers.
type Provers interface {
	Prover(dbname string) *Prover
}
