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

	"pgproxy/config"
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
	pid, err := readPIDFile(path)
	var failed *fs.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.As(err, &failed):
		return fmt.Errorf("pidfile: %w", err)
	case err != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH):
		return fmt.Errorf("pidfile '%s' exists, another instance running?", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("could not remove stale pidfile: %w", err)
	}
	return nil
}

// writePIDFile writes the process's id.
func writePIDFile(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("pidfile: %w", err)
	}
	_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("pidfile: %w", errors.Join(err, os.Remove(path)))
	}
	return nil
}

// replacePIDFile writes the process's id over that of another.
func replacePIDFile(path string) error {
	next := path + ".new"
	_ = os.Remove(next)
	if err := writePIDFile(next); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("pidfile: %w", errors.Join(err, os.Remove(next)))
	}
	return nil
}

// removePIDFile takes the file away, unless it is another process's by now.
func removePIDFile(path string) {
	if ownsPIDFile(path) {
		_ = os.Remove(path)
	}
}

func ownsPIDFile(path string) bool {
	pid, err := readPIDFile(path)
	return err == nil && pid == os.Getpid()
}

func readPIDFile(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil && pid <= 0 {
		err = strconv.ErrRange
	}
	return pid, err
}

// runningProcess returns the process that runs with a configuration.
func runningProcess(path string) (int, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return 0, err
	}
	file := cfg.Proxy.PidFile
	if file == "" {
		return 0, fmt.Errorf("%s has no pidfile: name the process with -pid", path)
	}
	pid, err := readPIDFile(file)
	if err != nil {
		return 0, fmt.Errorf("pidfile: %w", err)
	}
	return pid, nil
}

// inBackground says to a process that another waits for it to serve, be it for -d or
// for an upgrade: descriptor parentFD takes what is to be told until then.
const (
	inBackground = "PGPROXY_BACKGROUND"
	parentFD     = 3
)

// parent returns who waits for this process to serve; nil: nobody.
func parent() *os.File {
	if os.Getenv(inBackground) == "" {
		return nil
	}
	_ = os.Unsetenv(inBackground)
	syscall.CloseOnExec(parentFD)
	return os.NewFile(parentFD, "parent")
}

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
