package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
	path := fs.String("config", "pgproxy.toml", "the configuration `FILE`")
	if code, done := parseFlags(fs, args); done {
		return code
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "pgproxy run: %q is too much: the file is named with -config\n", fs.Arg(0))
		return exitUsage
	}
	cfg, err := config.Load(*path)
	if err != nil {
		fmt.Fprintf(stderr, "%v\n", err)
		return exitUsage
	}
	level := new(slog.LevelVar)
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	stopProfile, err := startProfile(os.Getenv("PGPROXY_CPUPROFILE"))
	if err != nil {
		fmt.Fprintf(stderr, "pgproxy: %v\n", err)
		return exitFailed
	}
	defer stopProfile()

	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	defer signal.Stop(signals)
	a, err := newApp(cfg, log, level)
	if err != nil {
		fmt.Fprintf(stderr, "pgproxy: %v\n", err)
		return exitFailed
	}
	if w := fileWarning(cfg, a.server.Settings().Users, fileLimit()); w != "" {
		log.Warn("configuration", "warning", w)
	}
	ctx, stop := context.WithCancel(context.Background())
	governed := governProcs(ctx, log)
	defer func() { stop(); <-governed }()
	log.Info("started", "version", fullVersion(), "config", *path, "pid", os.Getpid())
	if err := a.serve(signals); err != nil {
		log.Error("shutdown was not clean", "error", err)
		return exitFailed
	}
	log.Info("stopped")
	return exitOK
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
// and SIGQUIT cut.
func (a *app) serve(signals <-chan os.Signal) error {
	for {
		select {
		case mode := <-a.stop:
			return a.shutdown(mode, signals)
		case sig := <-signals:
			switch sig {
			case syscall.SIGHUP:
				_ = a.reload(a.server.Settings().Config.Path) // it has logged its error
			case syscall.SIGQUIT:
				return a.shutdown("", signals)
			default:
				a.log.Info("draining", "signal", sig.String())
				return a.shutdown("WAIT_FOR_SERVERS", signals)
			}
		}
	}
}

// shutdown ends the proxy in one of the ways of the console's SHUTDOWN: at once,
// when transactions are over, or when clients have left.
func (a *app) shutdown(mode string, signals <-chan os.Signal) error {
	ctx, cut := context.WithCancel(context.Background())
	defer cut()
	if d := a.server.Settings().Config.Proxy.ShutdownTimeout; d > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, d)
		defer stop()
	}
	done := make(chan struct{})
	defer close(done)
	go func() { // ends with shutdown
		for {
			select {
			case <-done:
				return
			case sig := <-signals:
				if sig == syscall.SIGINT || sig == syscall.SIGQUIT {
					cut()
				}
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
