package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// stopPatience is how long a program may take to end when it is asked to.
const stopPatience = 15 * time.Second

// Program is how to start a program that runs until it is stopped: a proxy, say.
type Program struct {
	Path string
	Args []string
	Env  []string            // added to ChildEnv
	Dir  string              // working directory
	Log  string              // file for what it prints
	As   *syscall.Credential // nil = ourselves
}

// Process is a running Program. Its methods may be called from any goroutine.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been waited for
	err  error         // set before done is closed
}

// Start starts the program; Stop must be called.
func (p Program) Start() (*Process, error) {
	name := filepath.Base(p.Path)
	out, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close()
	cmd := exec.Command(p.Path, p.Args...)
	cmd.Dir = p.Dir
	cmd.Env = ChildEnv(p.Env...)
	cmd.Stdout = out
	cmd.Stderr = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: p.As} // Ctrl-C reaches only us
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	r := &Process{name: name, log: p.Log, cmd: cmd, done: make(chan struct{})}
	go func() { // ends with the process, which Stop ends
		r.err = cmd.Wait()
		close(r.done)
	}()
	return r, nil
}

// PID is the process id.
func (r *Process) PID() int { return r.cmd.Process.Pid }

// Alive is nil while the process runs, else how it ended and what it said last.
func (r *Process) Alive() error {
	select {
	case <-r.done:
		return fmt.Errorf("%s has ended: %w", r.name, errors.Join(r.err, errors.New(r.tail())))
	default:
		return nil
	}
}

// Stop ends the process by SIGTERM, by SIGKILL if it does not heed that within
// 15 s, and waits for it. It may be called more than once.
func (r *Process) Stop() error {
	select {
	case <-r.done:
		return nil
	default:
	}
	_ = r.cmd.Process.Signal(syscall.SIGTERM) // it may just have ended
	select {
	case <-r.done:
		return nil
	case <-time.After(stopPatience):
	}
	_ = r.cmd.Process.Kill()
	<-r.done
	return fmt.Errorf("%s did not end within %s of SIGTERM and was killed: %s", r.name, stopPatience, r.tail())
}

// kill ends the process by SIGKILL and waits for it.
func (r *Process) kill() {
	_ = r.cmd.Process.Kill() // it may just have ended
	<-r.done
}

// tail is the end of what the process printed, in one line.
func (r *Process) tail() string {
	text, err := os.ReadFile(r.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}

// ChildEnv is the environment of every program that we start: nothing of PG*, and
// messages in English.
func ChildEnv(extra ...string) []string {
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
