package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pgproxy/proxy"
)

// An upgrade: the process starts its program, which may be another version now,
// with its own arguments and the listeners it has. The new process reads the
// configuration and takes the listeners over; when it serves it says so, and the
// old one closes its own and drains. If anything goes wrong before, the old one goes
// on as if nothing had been. The listeners are the same for both, so no connection
// is refused. Cancel requests for clients of the old process come to the new one,
// which hands them back (control.go).

// upgradeTimeout bounds how long the new process may take until it serves.
const upgradeTimeout = time.Minute

// heritageEnv has the heritage of a process that an upgrade has started. Its
// descriptor parentFD is as for inBackground.
const heritageEnv = "PGPROXY_UPGRADE"

// heritage is what a process gets from the one that it takes over from.
type heritage struct {
	Sockets []bequest
	HTTP    *bequest `json:",omitempty"`
	PIDFile string   // which that has written
	Kin     []int    // processes that still may have clients, the parent first

	listeners []proxy.Socket
	http      net.Listener
}

// bequest is a listener and what it was opened for.
type bequest struct {
	Name string
	FD   int
}

// inheritance reads what the process has inherited; nil: no process has started
// it for an upgrade.
func inheritance() (*heritage, error) {
	text := os.Getenv(heritageEnv)
	if text == "" {
		return nil, nil
	}
	_ = os.Unsetenv(heritageEnv)
	h := &heritage{}
	if err := json.Unmarshal([]byte(text), h); err != nil {
		return nil, fmt.Errorf("%s: %w", heritageEnv, err)
	}
	for _, b := range h.Sockets {
		l, err := listenerOf(b.FD)
		if err != nil {
			closeAll(h.listeners)
			return nil, fmt.Errorf("%s: %w", heritageEnv, err)
		}
		h.listeners = append(h.listeners, proxy.Socket{Listener: l, Name: b.Name})
	}
	if b := h.HTTP; b != nil {
		var err error
		if h.http, err = listenerOf(b.FD); err != nil {
			closeAll(h.listeners)
			return nil, fmt.Errorf("%s: %w", heritageEnv, err)
		}
	}
	return h, nil
}

// succession is how an upgrade comes about.
type succession struct {
	one     sync.Mutex // held during an upgrade
	goes    sync.WaitGroup
	over    context.Context // ended when the process begins to shut down
	end     context.CancelFunc
	program string   // as it was called; see programName
	heir    chan int // the process that has taken over
	kin     kin
}

func newSuccession() *succession {
	s := &succession{program: programName(), heir: make(chan int)}
	s.over, s.end = context.WithCancel(context.Background())
	return s
}

// programName is how this program was called: where a link or the search path has
// led to it, the new version is found the same way.
func programName() string {
	name := os.Args[0]
	if strings.Contains(name, "/") {
		if abs, err := filepath.Abs(name); err == nil {
			return abs
		}
	}
	return name
}

// upgrade starts the program anew and returns the id of the process that serves
// from now on; this one drains. On error this one goes on.
func (a *app) upgrade(ctx context.Context) (pid int, err error) {
	s := a.succession
	if !s.one.TryLock() {
		return 0, errors.New("an upgrade is under way")
	}
	defer s.one.Unlock()
	defer func() {
		if err != nil {
			a.log.Error("upgrade failed: this process goes on", "error", err)
		}
	}()
	switch {
	case s.over.Err() != nil || a.server.Draining():
		return 0, errors.New("the process is shutting down")
	case os.Getpid() == 1:
		return 0, errors.New("this is process 1, with which its container ends: start another container instead")
	}
	ctx, stop := context.WithTimeoutCause(ctx, upgradeTimeout, fmt.Errorf("it does not serve after %v", upgradeTimeout))
	defer stop()
	defer context.AfterFunc(s.over, stop)()
	path, err := exec.LookPath(s.program)
	if err != nil {
		if path, err = os.Executable(); err != nil {
			return 0, err
		}
	}
	a.log.Info("upgrading", "program", path)
	pid, err = a.startHeir(ctx, path)
	if err != nil {
		return 0, err
	}
	s.kin.add(pid) // before it may be handed a client
	select {
	case s.heir <- pid:
		return pid, nil
	case <-s.over.Done():
		endProcess(pid)
		return 0, errors.New("the process is shutting down")
	}
}

// startHeir starts the new process and waits until it serves.
func (a *app) startHeir(ctx context.Context, path string) (pid int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer func() { _ = r.Close() }()
	// os/exec would make the descriptors blocking, and with them the listeners that
	// this process still serves.
	fds := []uintptr{0, 1, 2, w.Fd()}
	defer func() {
		_ = w.Close()
		for _, fd := range fds[4:] {
			_ = unix.Close(int(fd))
		}
	}()
	h := heritage{PIDFile: a.config().Proxy.PidFile, Kin: append([]int{os.Getpid()}, a.succession.kin.list()...)}
	give := func(name string, l net.Listener) (bequest, error) {
		fd, err := duplicate(l)
		if err != nil {
			return bequest{}, err
		}
		fds = append(fds, uintptr(fd))
		return bequest{Name: name, FD: len(fds) - 1}, nil
	}
	for _, l := range a.server.Sockets() {
		b, err := give(l.Name, l.Listener)
		if err != nil {
			return 0, err
		}
		h.Sockets = append(h.Sockets, b)
	}
	if l := a.metrics.Listener(); l != nil {
		b, err := give(a.httpName, l)
		if err != nil {
			return 0, err
		}
		h.HTTP = &b
	}
	text, err := json.Marshal(h)
	if err != nil {
		return 0, err
	}
	env := append(os.Environ(), heritageEnv+"="+string(text), inBackground+"=1")
	pid, _, err = syscall.StartProcess(path, os.Args, &syscall.ProcAttr{Env: env, Files: fds})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	_ = w.Close()
	defer context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })()
	said, err := io.ReadAll(r)
	if text, ok := strings.CutSuffix(string(said), isReady); ok && err == nil {
		if text != "" {
			a.log.Info("the new process says", "text", strings.TrimSpace(text))
		}
		return pid, nil
	}
	endProcess(pid)
	if file := h.PIDFile; file != "" && !ownsPIDFile(file) { // the new one had got so far
		err = errors.Join(err, replacePIDFile(file))
	}
	if text := strings.TrimSpace(string(said)); text != "" {
		return 0, fmt.Errorf("the new process: %s", text)
	}
	return 0, errors.Join(errors.New("the new process has ended without a word"), err, context.Cause(ctx))
}

// endProcess ends a process that this one has started.
func endProcess(pid int) {
	if p, err := os.FindProcess(pid); err == nil {
		_ = p.Kill()
		_, _ = p.Wait()
	}
}

// duplicate returns another descriptor of a listener, which programs that are
// started do not get by themselves.
func duplicate(l net.Listener) (fd int, err error) {
	sc, ok := l.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("%s has no descriptor", l.Addr())
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(orig uintptr) { fd, err = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(cerr, err)
}

// heirPatience bounds how long an heir that finds no servers leaves the clients to
// the process before it, which may know no more.
const heirPatience = 5 * time.Second

// awaitServers waits until the servers have been looked at.
func (a *app) awaitServers() {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for end := time.Now().Add(heirPatience); !a.metrics.Ready() && time.Now().Before(end); {
		<-t.C
	}
}

// succeed makes the process one that can be upgraded, and takes over from the one
// that it replaces. leave undoes it.
func (a *app) succeed(l *launch) (leave func(), err error) {
	s := a.succession
	if l.heir != nil {
		s.kin.add(l.heir.Kin...)
	}
	a.server.SetKin(s.kin.cancel)
	file := l.cfg.Proxy.PidFile
	switch {
	case file == "":
	case l.inheritsPIDFile():
		err = replacePIDFile(file)
	default:
		err = writePIDFile(file)
	}
	if err != nil {
		return nil, err
	}
	c, err := newControl(a.request)
	if err != nil {
		a.log.Warn("no control socket: pgproxy upgrade cannot ask this process", "error", err)
	}
	return func() {
		if c != nil {
			c.close()
		}
		if file != "" {
			removePIDFile(file)
		}
	}, nil
}

// retire is what the process does when another has taken over.
func (a *app) retire(heir int, signals <-chan os.Signal) error {
	a.log.Info("another process has taken over: draining", "pid", heir)
	a.notify(fmt.Sprintf("MAINPID=%d\nREADY=1", heir))
	a.retired = true
	ctx, stop := context.WithTimeout(context.Background(), controlTimeout)
	if err := a.metrics.Leave(ctx); err != nil {
		a.log.Warn("a request for metrics was cut", "error", err)
	}
	stop()
	a.server.Leave()
	return a.shutdown("WAIT_FOR_SERVERS", signals)
}

// upgradeCommand asks a process to upgrade itself.
func upgradeCommand(args []string, stdout, stderr io.Writer) int {
	fs := newFlags("upgrade", "[-config FILE | -pid PID]", stderr)
	path := fs.String("config", "pgproxy.toml", "the configuration `FILE`, whose pidfile names the process")
	pid := fs.Int("pid", 0, "the process `PID`")
	if code, done := parseFlags(fs, args); done {
		return code
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "pgproxy upgrade: %q is too much: the file is named with -config\n", fs.Arg(0))
		return exitUsage
	}
	if *pid == 0 {
		var err error
		if *pid, err = runningProcess(*path); err != nil {
			fmt.Fprintf(stderr, "pgproxy upgrade: %v\n", err)
			return exitUsage
		}
	}
	ctx, stop := context.WithTimeout(context.Background(), upgradeTimeout+controlTimeout)
	defer stop()
	heir, err := askProcess(ctx, *pid, "upgrade")
	if err != nil {
		fmt.Fprintf(stderr, "pgproxy upgrade: %v\n", err)
		return exitFailed
	}
	fmt.Fprintf(stdout, "process %s has taken over from process %d\n", heir, *pid)
	return exitOK
}
