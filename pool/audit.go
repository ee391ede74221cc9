package pool

import (
	"slices"
	"strings"

	"pgproxy/backend"
)

// maxFindings is how many findings of audits are remembered.
const maxFindings = 100

// Finding is what an audit has found on one of a pool's connections.
type Finding struct {
	backend.Finding
	Pool Key
	PID  uint32 // of the server's process
}

// found remembers a finding and logs it.
func (s *Set) found(k Key, c *backend.Conn, f *backend.Finding) {
	s.log.Warn("a session was left in a state that no statement has announced; it was cleared away",
		"database", k.Database, "user", f.User, "server", k.Server, "pid", c.PID, "client", f.Addr,
		"application_name", f.Application, "found", strings.Join(f.What, ", "), "last_statement", f.Statement)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.findings) == maxFindings {
		s.findings = slices.Delete(s.findings, 0, 1)
	}
	s.findings = append(s.findings, Finding{Finding: *f, Pool: k, PID: c.PID})
}

// Findings returns what audits have found of late, the last one first.
func (s *Set) Findings() []Finding {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := slices.Clone(s.findings)
	slices.Reverse(out)
	return out
}
