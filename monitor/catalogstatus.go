package monitor

import (
	"maps"
	"slices"
	"time"
)

// CatalogStatus is what is known of the catalog of one database.
type CatalogStatus struct {
	Database  string        // entry of the configuration
	DBName    string        // on the servers
	State     CatalogState  //
	Read      time.Time     // end of the last reading that came to its end
	Took      time.Duration // of that
	Functions int           // of users and extensions
	Relations int           // with PostgreSQL's own
	Readings  uint64
	Failures  uint64 // readings that came to nothing
	LastError string // of the last reading; "" if it was well
}

// CatalogState says what a catalog is good for.
type CatalogState string

// The states of a catalog.
const (
	CatalogUnread   CatalogState = "unread"   // nothing is proved from it yet
	CatalogRead     CatalogState = "read"     // it is in force
	CatalogChanging CatalogState = "changing" // DDL has passed since it was read: nothing is proved
)

// note takes account of a reading.
func (r *reader) note(took time.Duration, err error) {
	st := *r.status.Load()
	st.Readings++
	st.LastError = words(err)
	if err != nil {
		st.Failures++
	} else {
		st.Read, st.Took, st.Functions, st.Relations = time.Now(), took, r.functions, r.relations
	}
	r.status.Store(&st)
}

// Catalogs returns the state of every catalog that is read, ordered by database.
func (m *Monitor) Catalogs() []CatalogStatus {
	entries := *m.entries.Load()
	var out []CatalogStatus
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		out = entries[name].catalogs.list(out)
	}
	return out
}

func (c *catalogs) list(out []CatalogStatus) []CatalogStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(c.readers)) {
		r := c.readers[name]
		st := *r.status.Load()
		switch {
		case r.prover.Since() == 0:
			st.State = CatalogUnread
		case r.prover.Changing():
			st.State = CatalogChanging
		default:
			st.State = CatalogRead
		}
		out = append(out, st)
	}
	return out
}
