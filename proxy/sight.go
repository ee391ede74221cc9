package proxy

import (
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"pgproxy/config"
	"pgproxy/router"
)

// What a session has seen and written, as far as its next read must show it:
// consistency and monotonic reads. All is told in stamps of router.Nanotime; a
// replica's Covered says up to which moment it shows what the primary did.

// sight is what the reads of a session have shown. While it reads from one replica
// it may go on there; what it has seen elsewhere must be covered.
type sight struct {
	floor   int64           // what could be seen at this moment has been seen on another server than the last one
	on      string          // address of the replica of the last lease; "" if that was on the primary
	since   int64           // when it began to read there
	blind   bool            // the last leases have shown nothing that could be older elsewhere
	shared  bool            // what must be seen may grow while a lease is kept: by others' writes, or by a SET
	token   router.Position // given with SET pgproxy.lsn
	tokenAt int64           // when that was; 0 is never
}

// seen makes the zero value what the next read must show.
func (s *Session) seen(level config.Consistency, seen *router.Seen) {
	v := &s.sight
	if level != config.ConsistencyEventual {
		seen.Catalog = s.prover.Since()
		seen.Floor = max(v.floor, s.mine.Load().Load())
		switch last := s.answered.Load(); {
		case v.blind:
		case v.on != "":
			seen.Last, seen.On, seen.Since = last, v.on, v.since
		default:
			seen.Floor = max(seen.Floor, last)
		}
	}
	if level == config.ConsistencyGlobal {
		for _, w := range *s.writes.Load() {
			seen.Floor = max(seen.Floor, w.Load())
		}
	}
	if v.tokenAt > seen.Floor {
		seen.Floor, seen.Token = v.tokenAt, v.token
	}
}

// behind reports whether the replica of the lease, which was good enough when it was
// lent, is not known to show what a read must see by now.
func (s *Session) behind() bool {
	if !s.sight.shared || s.leaseRole != router.RoleReplica {
		return false
	}
	var seen router.Seen
	s.seen(s.level(), &seen)
	if topo := s.srv.topo.Topology(s.db.Name); topo != nil {
		for i := range topo.Servers {
			if x := &topo.Servers[i]; x.Addr == s.sight.on {
				return !seen.ShownBy(x)
			}
		}
	}
	return true
}

// look notes that the session is about to read from a server.
func (s *Session) look(plan *router.Plan, role router.Role, addr string, steady int64) {
	v := &s.sight
	if role == router.RoleReplica && v.on == addr && steady <= v.since {
		v.blind = v.blind && blind(plan)
		return
	}
	if !v.blind {
		v.floor = max(v.floor, s.answered.Load())
	}
	v.on, v.blind = "", blind(plan)
	if role == router.RoleReplica {
		v.on, v.since = addr, router.Nanotime()
	}
}

// blind reports whether a statement shows nothing of the database's contents.
func blind(plan *router.Plan) bool {
	switch plan.Tag {
	case "SET", "RESET", "SHOW", "DISCARD ALL", "BEGIN", "START TRANSACTION":
		return plan.Effects&^(router.EffectSet|router.EffectBegin|router.EffectBeginReadOnly|router.EffectDiscardAll) == 0
	}
	return plan == welcomePlan
}

// level is the consistency of the session's reads.
func (s *Session) level() config.Consistency {
	if s.params.level != config.ConsistencyInherit {
		return s.params.level
	}
	if u := s.cfg.Users[s.user]; u != nil && u.Consistency != config.ConsistencyInherit {
		return u.Consistency
	}
	return s.db.Consistency
}

// count chooses where the session's writes are counted: for its reads, and for
// those of others that ask for global consistency.
func (s *Session) count(system string) {
	s.system = system
	s.writes.Store(s.srv.ledger.writesOf(s.db, system))
	mine := &s.lastWrite
	if s.db.ConsistencyScope == config.ScopeUser {
		mine = s.srv.ledger.writesBy(s.db.Name, s.database, s.user)
	}
	if old := s.mine.Swap(mine); old != nil && old != mine {
		raise(mine, old.Load())
	}
}

// raise makes a stamp the newest one of those that it was given.
func raise(w *atomic.Int64, at int64) {
	for {
		old := w.Load()
		if old >= at || w.CompareAndSwap(old, at) {
			return
		}
	}
}

// ledger has the stamps of the last writes. A stamp that is not there yet begins
// with the moment when it is asked for: what was written before that and forgotten
// counts as written then.
type ledger struct {
	mu     sync.Mutex
	stamps map[ledgerKey]weak.Pointer[atomic.Int64] // one for each key, as long as somebody has it
	kept   map[ledgerKey]keptStamp                  // those of users, for a while
	tidyAt int                                      // number of stamps at which those that are gone are looked for
}

// ledgerKey is a database on a server or in a cluster, or a user of an entry.
type ledgerKey struct{ where, database, user string }

// keptStamp is one that nobody may have at the moment.
type keptStamp struct {
	at   *atomic.Int64
	used time.Time // when it was last asked for
}

// ledgerAge is how long the stamp of a user is kept who has no session. It is to be
// longer than any lag that an application wants to read through.
const ledgerAge = 10 * time.Minute

// writesOf returns where writes to the database of an entry are counted: for each
// of its servers, and for their cluster where that is known, so that two entries
// for the same database share what they count.
func (l *ledger) writesOf(db *config.Database, system string) *[]*atomic.Int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]*atomic.Int64, 0, len(db.Servers)+1)
	for _, s := range db.Servers {
		list = append(list, l.getLocked(ledgerKey{where: s.Addr(), database: db.DBName}))
	}
	if system != "" {
		list = append(list, l.getLocked(ledgerKey{where: "cluster " + system, database: db.DBName}))
	}
	return &list
}

// writesBy returns where the writes of a user are counted, for all its sessions.
func (l *ledger) writesBy(entry, database, user string) *atomic.Int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := ledgerKey{where: "entry " + entry, database: database, user: user}
	at := l.getLocked(k)
	if l.kept == nil {
		l.kept = make(map[ledgerKey]keptStamp)
	}
	l.kept[k] = keptStamp{at, time.Now()}
	return at
}

func (l *ledger) getLocked(k ledgerKey) *atomic.Int64 {
	if at := l.stamps[k].Value(); at != nil {
		return at
	}
	if l.stamps == nil {
		l.stamps = make(map[ledgerKey]weak.Pointer[atomic.Int64])
	}
	if len(l.stamps) >= l.tidyAt {
		l.tidyLocked()
	}
	at := new(atomic.Int64)
	at.Store(router.Nanotime())
	l.stamps[k] = weak.Make(at)
	return at
}

// tidyLocked forgets what nobody has.
func (l *ledger) tidyLocked() {
	for k, s := range l.kept {
		if time.Since(s.used) > ledgerAge {
			delete(l.kept, k)
		}
	}
	for k, at := range l.stamps {
		if at.Value() == nil {
			delete(l.stamps, k)
		}
	}
	l.tidyAt = max(1000, 2*len(l.stamps))
}
