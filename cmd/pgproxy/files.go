package main

import (
	"fmt"
	"math"
	"syscall"

	"pgproxy/auth"
	"pgproxy/config"
)

// spareFiles is what the process has open beside clients and pools: logs,
// listeners, scrapes of metrics, cancel requests under way.
const spareFiles = 64

// fileWarning tells that clients and pools may need more open files than the
// limit; "" if they do not.
func fileWarning(cfg *config.Config, users *auth.Userlist, limit uint64) string {
	servers := 0
	for _, d := range demands(cfg, users) {
		servers += d.most
	}
	need := cfg.Proxy.MaxClientConn + servers + spareFiles
	if uint64(need) <= limit {
		return ""
	}
	return fmt.Sprintf("max_client_conn %d and up to %d server connections need %d open files, but the limit is %d: raise it (ulimit -n, LimitNOFILE=) or lower max_client_conn",
		cfg.Proxy.MaxClientConn, servers, need, limit)
}

// secretsWarning names the users that have several secrets, which is for a while only;
// "" if there are none.
func secretsWarning(users *auth.Userlist) string {
	names := users.Several()
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf("users with several secrets, each of which is accepted: %q", names)
}

// fileLimit returns how many files the process may have open.
func fileLimit() uint64 {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return math.MaxUint64
	}
	return r.Cur
}
