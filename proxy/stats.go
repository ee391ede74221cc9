package proxy

import (
	"time"

	"pgproxy/backend"
	"pgproxy/router"
)

// SessionInfo is a copy of what an observer may know of a client.
type SessionInfo struct {
	ID              uint64
	User, Database  string
	State           string // active, idle, waiting, login
	Addr, LocalAddr string
	Since           time.Time
	Seen            time.Time     // when the client last sent something
	Wait            time.Duration // in the queue up to now
	Prepared        int           // named prepared statements
	AppName         string
	TLS             string        // version and cipher suite; "" is not encrypted
	Server          *backend.Info // of the connection that is lent to it; nil if none
	PID             uint32
	Console         bool
	Replication     string // logical or physical; "" is an ordinary session
}

// Sessions returns a copy for every client, in order of their numbers.
func (s *Server) Sessions() []SessionInfo {
	list := s.list()
	out := make([]SessionInfo, 0, len(list))
	now := router.Nanotime()
	for _, ses := range list {
		i := SessionInfo{ID: ses.id, State: "login", Since: ses.since, PID: ses.pid}
		o := ses.origin.Load()
		i.Addr, i.LocalAddr = o.remote.String(), o.local.String()
		if ses.replica.Load() != nil && ses.loggedIn() {
			out = append(out, ses.replicaInfo(i))
			continue
		}
		if !ses.welcomed.Load() {
			out = append(out, i)
			continue
		}
		i.User, i.Database, i.State = ses.user, ses.database, "idle"
		i.Seen = time.Now().Add(-time.Duration(now - ses.lastSeen.Load()))
		i.Prepared = int(ses.prepared.Load())
		i.AppName, _ = ses.settings.Load().Get("application_name")
		i.TLS = backend.DescribeTLS(ses.link)
		if ses.waiter.Waiting() || ses.waiting.Load() != 0 {
			i.State = "waiting"
			i.Wait = time.Duration(now - ses.lastSeen.Load())
		} else if c := ses.current.Load(); c != nil {
			if info := c.Info(); info.Holder == ses {
				i.State, i.Server = "active", &info
			}
		}
		out = append(out, i)
	}
	return out
}

// Stats are the server's own counts.
type Stats struct {
	Clients    int    // connected now, logged in or not
	Logins     uint64 // successful, ever
	Refused    uint64 // over max_client_conn, ever
	Limited    uint64 // logins over auth_failure_limit, ever
	Panics     uint64
	Statements int // distinct prepared statements that are remembered

	StatementBytes int64 // what they take
	Draining       bool
	Rerun          Reruns
	Healed         uint64 // statement shapes that a standby has refused
	Replicas       int    // replication connections now
}

// Stats returns a copy.
func (s *Server) Stats() Stats {
	statements, bytes := s.registry.size()
	return Stats{
		Clients: int(s.clients.Load()), Logins: s.logins.Load(), Refused: s.refused.Load(), Limited: s.limited.Load(), Panics: s.panics.Load(),
		Statements: statements, StatementBytes: bytes, Draining: s.draining.Load(), Rerun: s.rerunCounts(), Healed: s.healed.Load(),
		Replicas: int(s.replicas.Load()),
	}
}

// Reruns counts statements that were run again without the client's noticing.
type Reruns struct {
	Stale    uint64 // the server's prepared statement was of no use any more
	Refused  uint64 // a standby could not run it
	Conflict uint64 // a standby gave it up in favour of its recovery
	Died     uint64 // the connection to a standby ended
}

func (s *Server) rerunCounts() Reruns {
	return Reruns{
		Stale: s.reruns[backend.CauseStale].Load(), Refused: s.reruns[backend.CauseRefused].Load(),
		Conflict: s.reruns[backend.CauseConflict].Load(), Died: s.reruns[backend.CauseDied].Load(),
	}
}
