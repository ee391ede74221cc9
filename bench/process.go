package bench

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stopPatience is how long a peer may take to end when it is asked to.
const stopPatience = 15 * time.Second

// command is how to start a peer.
type command struct {
	path string
	args []string
	env  []string
	dir  string              // working directory
	log  string              // file for what it prints
	as   *syscall.Credential // nil = ourselves
}

// process is a running peer.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been waited for
	err  error         // set before done is closed
}

// start starts a process; stop must be called.
func (c command) start() (*process, error) {
	name := filepath.Base(c.path)
	out, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close()
	cmd := exec.Command(c.path, c.args...)
	cmd.Dir = c.dir
	cmd.Env = childEnv(c.env...)
	cmd.Stdout = out
	cmd.Stderr = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: c.as} // Ctrl-C reaches only us
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, log: c.log, cmd: cmd, done: make(chan struct{})}
	go func() { // ends with the process, which stop ends
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// alive is nil while the process runs.
func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %w", p.name, errors.Join(p.err, errors.New(p.tail())))
	default:
		return nil
	}
}

// stop ends the process by SIGTERM, by SIGKILL if it does not heed that, and
// waits for it. It may be called more than once.
func (p *process) stop() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may just have ended
	select {
	case <-p.done:
		return nil
	case <-time.After(stopPatience):
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	return fmt.Errorf("%s did not end within %s of SIGTERM and was killed: %s", p.name, stopPatience, p.tail())
}

// tail is the end of what the process printed, in one line.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}

// tick is the unit of the times in /proc/PID/stat, USER_HZ, which is 1/100 s on
// every architecture that Go runs on.
const tick = 10 * time.Millisecond

// cpuTime is the CPU time, user and system, that a process has used so far.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("CPU time: %w", err)
	}
	return parseStat(text)
}

func parseStat(text []byte) (time.Duration, error) {
	// The second field is the name in parentheses and may hold anything.
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("CPU time: unexpected text %q", text)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
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

// childEnv is the environment of everything that we start: nothing of PG*, and
// messages in English.
func childEnv(extra ...string) []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "PG") || strings.HasPrefix(name, "LC_") || name == "LANG" || name == "LANGUAGE" {
			continue
		}
		env = append(env, kv)
	}
	return append(append(env, "LC_ALL=C"), extra...)
}

// freePort finds a port of 127.0.0.1 below the range that Linux gives to outgoing
// connections (32768 and up), so that none of those takes it before the peer.
func freePort() (int, error) {
	var last error
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp4", net.JoinHostPort(loopback, strconv.Itoa(port)))
		if err != nil {
			last = err
			continue
		}
		return port, l.Close()
	}
	return 0, fmt.Errorf("no free port: %w", last)
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
