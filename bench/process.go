package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of the times in /proc/PID/stat, USER_HZ, which is 1/100 s on
// every architecture that Go runs on.
const tick = 10 * time.Millisecond

// familyTime is the CPU time that a process that leads its session, the processes
// of that session, and the children that it has waited for have used so far.
func familyTime(leader int) (time.Duration, error) {
	own, err := os.ReadFile("/proc/" + strconv.Itoa(leader) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("CPU time: %w", err)
	}
	f, err := statFields(own, 15)
	if err != nil {
		return 0, err
	}
	total, err := ticks(f[13], f[14])
	if err != nil {
		return 0, err
	}
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, fmt.Errorf("CPU time: %w", err)
	}
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		f, err := statFields(text, 13)
		if err != nil {
			return 0, err
		}
		if f[3] != strconv.Itoa(leader) {
			continue
		}
		t, err := ticks(f[11], f[12])
		if err != nil {
			return 0, err
		}
		total += t
	}
	return total, nil
}

// cpuTime is the CPU time, user and system, that a process has used so far.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("CPU time: %w", err)
	}
	return parseStat(text)
}

func parseStat(text []byte) (time.Duration, error) {
	f, err := statFields(text, 13)
	if err != nil {
		return 0, err
	}
	return ticks(f[11], f[12])
}

// statFields are the fields of /proc/PID/stat from the third on, least of them.
// The second is the name in parentheses and may hold anything.
func statFields(text []byte, least int) ([]string, error) {
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(f) < least {
		return nil, fmt.Errorf("CPU time: unexpected text %q", text)
	}
	return f, nil
}

// ticks adds two times.
func ticks(a, b string) (time.Duration, error) {
	user, err1 := strconv.ParseInt(a, 10, 64)
	system, err2 := strconv.ParseInt(b, 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return 0, fmt.Errorf("CPU time: %w", err)
	}
	return time.Duration(user+system) * tick, nil
}

// ownerOf is the account that the servers of a cluster run as, nil if that is
// ours. PgBouncer refuses to be root just as PostgreSQL does, so root starts it
// as that one.
func ownerOf(dir string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	st, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("account of the servers: %w", err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || sys.Uid == 0 {
		return nil, fmt.Errorf("account of the servers: root owns %s", dir)
	}
	return &syscall.Credential{Uid: sys.Uid, Gid: sys.Gid}, nil
}

// raiseOpenFiles lets us and our children have as many descriptors as the system
// allows, and fails if that is less than want.
func raiseOpenFiles(want int) error {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	if lim.Max < uint64(want) {
		return fmt.Errorf("limit of open files: %d are needed and %d allowed (ulimit -Hn): fewer -idle or -clients", want, lim.Max)
	}
	// The runtime has raised ours at start, but children get the old value until
	// a call of Setrlimit.
	lim.Cur = lim.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	return nil
}
