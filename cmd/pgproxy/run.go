package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
	"time"

	"pgproxy/config"
)

// closeTimeout bounds how long the process waits for its servers' goodbyes.
const closeTimeout = 10 * time.Second

func runCommand(args []string, _, stderr io.Writer) int {
	fs := newFlags("run", "-config FILE", stderr)
	path := fs.String("config", "pgproxy.toml", "the configuration `FILE`, or a pgbouncer.ini")
	if code, done := parseFlags(fs, args); done {
		return code
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "pgproxy run: %q is too much: the file is named with -config\n", fs.Arg(0))
		return exitUsage
	}
	l := &launch{stderr: stderr, log: stderr}
	if l.parent = parent(); l.parent != nil {
		l.stderr = l.parent
	}
	var err error
	if l.cfg, err = config.Load(*path); err != nil {
		fmt.Fprintf(l.stderr, "%v\n", err)
		return exitUsage
	}
	return l.run()
}

// bouncerCommand is pgproxy called as PgBouncer is: [OPTION]... FILE.
func bouncerCommand(args []string, stdout, stderr io.Writer) int {
	o, err := parseOptions(args)
	if err != nil {
		fmt.Fprintf(stderr, "pgproxy: %v\nTry \"pgproxy --help\" for more information.\n", err)
		return exitFailed
	}
	switch {
	case o.help:
		usage(stdout)
		return exitOK
	case o.version:
		return bouncerVersion(stdout)
	}
	l := &launch{user: o.user, reboot: o.reboot, verbose: o.verbose > 0, stderr: stderr, log: stderr}
	if o.quiet {
		l.log = nil
	}
	if l.parent = parent(); l.parent != nil {
		l.stderr = l.parent
	}
	if o.daemon && l.parent != nil {
		l.log = nil
	}
	if l.cfg, err = config.Load(o.file); err != nil {
		fmt.Fprintf(l.stderr, "%v\n", err)
		return exitFailed
	}
	if o.daemon && l.parent == nil {
		if l.cfg.Proxy.PidFile == "" {
			fmt.Fprintln(stderr, "pgproxy: daemon needs pidfile configured")
			return exitFailed
		}
		return background(args, stderr)
	}
	return l.run()
}

// launch is one process from its command line to its end.
type launch struct {
	cfg     *config.Config
	user    string // of the operating system, before that of the configuration
	reboot  bool
	verbose bool
	stderr  io.Writer // what is said before the log is ready
	log     io.Writer // the log, besides file and syslog; nil: nowhere
	parent  *os.File  // who waits for this process to be ready; nil: nobody
	heir    *heritage // what it takes over; nil: nothing
}

// run serves until a signal or the console ends the process, and returns its
// exit code.
func (l *launch) run() int {
	err := l.prepare()
	if err != nil {
		fmt.Fprintf(l.stderr, "pgproxy: %v\n", err)
		return exitFailed
	}
	log := newLogs(l.log, l.verbose)
	defer log.close()
	if err := log.apply(&l.cfg.Proxy); err != nil {
		if l.cfg.Proxy.Syslog && log.file.reopen(l.cfg.Proxy.LogFile) == nil {
			log.Warn("the log goes without syslog", "error", err)
		} else {
			fmt.Fprintf(l.stderr, "pgproxy: %v\n", err)
			return exitFailed
		}
	}
	err = l.serve(log)
	var never startError
	switch {
	case errors.As(err, &never):
		if l.log == nil {
			log.Error("not started", "error", err)
		}
		fmt.Fprintf(l.stderr, "pgproxy: %v\n", err)
		return exitFailed
	case err != nil:
		log.Error("shutdown was not clean", "error", err)
		return exitFailed
	}
	log.Info("stopped")
	return exitOK
}

// startError is why the process does not serve.
type startError struct{ error }

func (e startError) Unwrap() error { return e.error }

// prepare does what comes before anything is opened.
func (l *launch) prepare() error {
	p := &l.cfg.Proxy
	var err error
	if l.heir, err = inheritance(); err != nil {
		return err
	}
	name := cmp.Or(l.user, p.User)
	if name != "" {
		if err := become(name); err != nil {
			return err
		}
	}
	if l.cfg.INI() && os.Getuid() == 0 && name == "" {
		return errors.New("should not run as root: want -u USER, or user in the configuration, which may be root if it has to be")
	}
	if l.heir != nil {
		l.reboot = false
	}
	if l.reboot && servedSocket(p.UnixSocketDir, p.ListenPort) {
		return errors.New("online restart (-R) is not supported: \"pgproxy upgrade\" replaces the running process; or set so_reuseport = 1, start the new one beside it, and end the old one with SIGTERM")
	}
	if p.PidFile != "" && !l.inheritsPIDFile() {
		return checkPIDFile(p.PidFile)
	}
	return nil
}

// inheritsPIDFile tells whether the pidfile is that of the process that this one
// takes over from.
func (l *launch) inheritsPIDFile() bool {
	return l.heir != nil && l.heir.PIDFile == l.cfg.Proxy.PidFile
}

// serve is run with a log.
func (l *launch) serve(log *logs) error {
	stopProfile, err := startProfile(os.Getenv("PGPROXY_CPUPROFILE"))
	if err != nil {
		return startError{err}
	}
	defer stopProfile()
	opt := appOptions{logs: log}
	if l.heir != nil {
		opt.heir, opt.listeners, opt.http = true, l.heir.listeners, l.heir.http
		if l.heir.HTTP != nil {
			opt.httpName = l.heir.HTTP.Name
		}
	} else if opt.listeners, err = givenListeners(); err != nil {
		return startError{err}
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR2)
	if l.cfg.INI() {
		signal.Notify(signals, syscall.SIGUSR1)
	}
	defer signal.Stop(signals)
	a, err := newApp(l.cfg, log.Logger, opt)
	if err != nil {
		return startError{err}
	}
	leave, err := a.succeed(l)
	if err != nil {
		end, stop := context.WithTimeout(context.Background(), closeTimeout)
		defer stop()
		return startError{errors.Join(err, a.close(end))}
	}
	defer leave()
	if l.reboot {
		log.Warn("-R is not supported; there was no old process to take over from")
	}
	if w := secretsWarning(a.server.Settings().Users); w != "" {
		log.Warn("configuration", "warning", w)
	}
	if w := fileWarning(l.cfg, a.server.Settings().Users, fileLimit()); w != "" {
		log.Warn("configuration", "warning", w)
	}
	ctx, stop := context.WithCancel(context.Background())
	governed := governProcs(ctx, log.Logger)
	defer func() { stop(); <-governed }()
	log.Info("started", "version", fullVersion(), "config", l.cfg.Path, "pid", os.Getpid())
	if l.heir == nil {
		a.notify("READY=1") // else it is the old process that the service manager hears
	}
	if l.parent != nil {
		_, _ = io.WriteString(l.parent, isReady)
		_ = l.parent.Close()
	}
	a.server.Own()
	return a.serve(signals)
}

// startProfile writes a CPU profile of the whole run to a file; "" is none.
func startProfile(path string) (stop func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("PGPROXY_CPUPROFILE: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close()
	}, nil
}

// serve acts on signals, and on the console's SHUTDOWN, until one of them ends
// the process. SIGHUP reloads; SIGTERM and SIGINT drain, SIGINT a second time
// and SIGQUIT cut; SIGUSR2 starts the program anew. With a pgbouncer.ini SIGTERM
// waits for the clients to leave, a second one cuts, and SIGUSR1 and SIGUSR2 are
// PAUSE and RESUME.
func (a *app) serve(signals <-chan os.Signal) error {
	over := a.succession.end
	defer a.succession.goes.Wait()
	defer over()
	for {
		select {
		case mode := <-a.stop:
			over()
			return a.shutdown(mode, signals)
		case heir := <-a.succession.heir:
			over()
			return a.retire(heir, signals)
		case sig := <-signals:
			switch sig {
			case syscall.SIGHUP:
				a.log.Info("reloading", "signal", sig.String())
				a.notify(reloadingState())
				_ = a.reload(a.config().Path) // it has logged its error
				a.notify("READY=1")
			case syscall.SIGQUIT:
				over()
				a.log.Info("ending at once", "signal", sig.String())
				return a.shutdown("", signals)
			case syscall.SIGUSR1:
				a.pause()
			case syscall.SIGUSR2:
				if a.config().INI() {
					a.resume()
				} else {
					a.succession.goes.Go(func() { _, _ = a.upgrade(a.succession.over) }) // it logs its error
				}
			default:
				over()
				mode := "WAIT_FOR_SERVERS"
				if sig == syscall.SIGTERM && a.config().INI() {
					mode = "WAIT_FOR_CLIENTS"
				}
				a.log.Info("draining", "signal", sig.String(), "mode", mode)
				return a.shutdown(mode, signals)
			}
		}
	}
}

// pause is the console's PAUSE, which nobody waits for.
func (a *app) pause() {
	if a.pools.Paused("") {
		a.log.Info("SIGUSR1, but already paused")
		return
	}
	a.log.Info("SIGUSR1, pausing all activity")
	now, end := context.WithCancel(context.Background())
	end()
	_ = a.pools.Pause(now, "") // it only marks them
}

func (a *app) resume() {
	if !a.pools.Resume("") {
		a.log.Info("SIGUSR2, but not paused")
		return
	}
	a.log.Info("SIGUSR2, continuing from PAUSE")
}

// notify tells the service manager.
func (a *app) notify(state string) {
	if a.retired { // that has another main process by now
		return
	}
	if err := notify(state); err != nil {
		a.log.Warn("the service manager could not be told", "state", state, "error", err)
	}
}

// shutdown ends the proxy in one of the ways of the console's SHUTDOWN: at once,
// when transactions are over, or when clients have left.
func (a *app) shutdown(mode string, signals <-chan os.Signal) error {
	a.notify("STOPPING=1")
	ctx, cut := context.WithCancel(context.Background())
	defer cut()
	if p := &a.config().Proxy; p.ShutdownTimeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, p.DrainDelay+p.ShutdownTimeout)
		defer stop()
	}
	again := a.config().INI()
	done := make(chan struct{})
	defer close(done)
	go func() { // ends with shutdown
		for {
			select {
			case <-done:
				return
			case sig := <-signals:
				if sig == syscall.SIGINT || sig == syscall.SIGQUIT || sig == syscall.SIGTERM && again {
					a.log.Info("ending at once: another signal while shutting down", "signal", sig.String())
					cut()
				}
			case <-a.stop: // the console's SHUTDOWN
				cut()
			}
		}
	}()
	var err error
	switch mode {
	case "WAIT_FOR_SERVERS":
		err = a.server.Shutdown(ctx)
	case "WAIT_FOR_CLIENTS":
		err = a.server.ShutdownWhenEmpty(ctx)
	}
	end, stop := context.WithTimeout(context.Background(), closeTimeout)
	defer stop()
	return errors.Join(err, a.close(end))
}
