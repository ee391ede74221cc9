package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// become makes the process that of another role of the operating system, with
// its groups.
func become(name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("user: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	if uid == os.Getuid() {
		return nil
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	var groups []int
	for _, id := range ids {
		if n, err := strconv.Atoi(id); err == nil {
			groups = append(groups, n)
		}
	}
	if err := errors.Join(syscall.Setgroups(groups), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
		return fmt.Errorf("becoming user %s: %w", name, err)
	}
	return nil
}

// checkPIDFile refuses to start beside a process that has written the file, and
// removes the file of one that is gone.
func checkPIDFile(path string) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfile: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return fmt.Errorf("pidfile '%s' exists, another instance running?", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("could not remove stale pidfile: %w", err)
	}
	return nil
}

// writePIDFile writes the process's id; remove takes the file away again.
func writePIDFile(path string) (remove func(), err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, fmt.Errorf("pidfile: %w", err)
	}
	_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("pidfile: %w", errors.Join(err, os.Remove(path)))
	}
	return func() { _ = os.Remove(path) }, nil
}

// inBackground says to a process that it is the one that -d has started: its
// descriptor 3 takes what is to be told before it serves.
const inBackground = "PGPROXY_BACKGROUND"

// isReady is what the process says when it serves.
const isReady = "ready\n"

// background starts this program again in a session of its own, and waits until
// it serves or has failed.
func background(args []string, stderr io.Writer) int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintf(stderr, "pgproxy: %v\n", err)
		return exitFailed
	}
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Fprintf(stderr, "pgproxy: %v\n", err)
		return exitFailed
	}
	defer r.Close()
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), inBackground+"=1")
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		fmt.Fprintf(stderr, "pgproxy: %v\n", err)
		return exitFailed
	}
	said, err := io.ReadAll(r)
	if text, ok := strings.CutSuffix(string(said), isReady); ok && err == nil {
		_, _ = io.WriteString(stderr, text)
		return exitOK
	}
	_, _ = stderr.Write(said)
	return exitFailed
}

// servedSocket reports whether a process serves the Unix socket of a
// configuration.
func servedSocket(dir string, port int) bool {
	if dir == "" {
		return false
	}
	c, err := net.Dial("unix", filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(port)))
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}
