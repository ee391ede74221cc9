package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"pgproxy/config"
)

// logs is where the log goes: stderr, a file, syslog. Its Logger is ready before
// file and syslog are.
type logs struct {
	*slog.Logger
	level *slog.LevelVar
	file  logFile
	sys   sysLog

	fixed bool // the level is that of the command line
}

// facilities are syslog's, by the words of the configuration.
var facilities = map[string]syslog.Priority{
	"kern": syslog.LOG_KERN, "user": syslog.LOG_USER, "mail": syslog.LOG_MAIL, "daemon": syslog.LOG_DAEMON,
	"auth": syslog.LOG_AUTH, "syslog": syslog.LOG_SYSLOG, "lpr": syslog.LOG_LPR, "news": syslog.LOG_NEWS,
	"uucp": syslog.LOG_UUCP, "cron": syslog.LOG_CRON, "authpriv": syslog.LOG_AUTHPRIV, "ftp": syslog.LOG_FTP,
	"local0": syslog.LOG_LOCAL0, "local1": syslog.LOG_LOCAL1, "local2": syslog.LOG_LOCAL2, "local3": syslog.LOG_LOCAL3,
	"local4": syslog.LOG_LOCAL4, "local5": syslog.LOG_LOCAL5, "local6": syslog.LOG_LOCAL6, "local7": syslog.LOG_LOCAL7,
}

// newLogs makes a log to stderr, unless that is nil.
func newLogs(stderr io.Writer, verbose bool) *logs {
	l := &logs{level: new(slog.LevelVar), fixed: verbose}
	if verbose {
		l.level.Set(slog.LevelDebug)
	}
	opt := &slog.HandlerOptions{Level: l.level}
	handlers := []slog.Handler{
		&sink{Handler: slog.NewTextHandler(&l.file, opt), on: &l.file.on},
		&sink{Handler: &sysHandler{log: &l.sys, level: l.level}, on: &l.sys.on},
	}
	if stderr != nil {
		handlers = append(handlers, slog.NewTextHandler(stderr, opt))
	}
	l.Logger = slog.New(slog.NewMultiHandler(handlers...))
	return l
}

// apply opens what the configuration names, again if it is open. On error what
// was open stays.
func (l *logs) apply(p *config.Proxy) error {
	if !l.fixed {
		var level slog.Level
		if err := level.UnmarshalText([]byte(p.LogLevel)); err == nil {
			l.level.Set(level)
		}
	}
	return errors.Join(l.file.reopen(p.LogFile), l.sys.reopen(p))
}

func (l *logs) close() {
	_ = l.file.reopen("")
	_ = l.sys.reopen(&config.Proxy{})
}

// sink is a handler that can be off.
type sink struct {
	slog.Handler
	on *atomic.Bool
}

// Enabled is false while it is off.
func (s *sink) Enabled(ctx context.Context, l slog.Level) bool {
	return s.on.Load() && s.Handler.Enabled(ctx, l)
}

// WithAttrs keeps the switch.
func (s *sink) WithAttrs(a []slog.Attr) slog.Handler { return &sink{s.Handler.WithAttrs(a), s.on} }

// WithGroup keeps the switch.
func (s *sink) WithGroup(name string) slog.Handler { return &sink{s.Handler.WithGroup(name), s.on} }

// logFile is a file that can be opened again.
type logFile struct {
	on atomic.Bool
	mu sync.Mutex
	f  *os.File
}

func (l *logFile) reopen(path string) error {
	var f *os.File
	if path != "" {
		var err error
		if f, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640); err != nil {
			return fmt.Errorf("logfile: %w", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		_ = l.f.Close()
	}
	l.f = f
	l.on.Store(f != nil)
	return nil
}

// Write appends to the file, if there is one.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return len(p), nil
	}
	return l.f.Write(p)
}

// sysLog is a connection to the system's syslog.
type sysLog struct {
	on atomic.Bool
	mu sync.Mutex
	w  *syslog.Writer
}

func (l *sysLog) reopen(p *config.Proxy) error {
	var w *syslog.Writer
	if p.Syslog {
		var err error
		if w, err = syslog.New(facilities[p.SyslogFacility]|syslog.LOG_INFO, p.SyslogIdent); err != nil {
			return fmt.Errorf("syslog: %w", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w != nil {
		_ = l.w.Close()
	}
	l.w = w
	l.on.Store(w != nil)
	return nil
}

// write sends one line with a priority.
func (l *sysLog) write(level slog.Level, line string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.w == nil:
		return nil
	case level >= slog.LevelError:
		return l.w.Err(line)
	case level >= slog.LevelWarn:
		return l.w.Warning(line)
	case level >= slog.LevelInfo:
		return l.w.Info(line)
	}
	return l.w.Debug(line)
}

// sysHandler writes records to syslog, which adds the time itself.
type sysHandler struct {
	log   *sysLog
	level slog.Leveler
	with  []func(slog.Handler) slog.Handler
}

// Enabled goes by the level.
func (h *sysHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// Handle sends one record.
func (h *sysHandler) Handle(ctx context.Context, r slog.Record) error {
	var line lineWriter
	var t slog.Handler = slog.NewTextHandler(&line, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return a
	}})
	for _, f := range h.with {
		t = f(t)
	}
	if err := t.Handle(ctx, r); err != nil {
		return err
	}
	return h.log.write(r.Level, string(line))
}

// WithAttrs notes them for the records.
func (h *sysHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return h.and(func(t slog.Handler) slog.Handler { return t.WithAttrs(a) })
}

// WithGroup notes it for the records.
func (h *sysHandler) WithGroup(name string) slog.Handler {
	return h.and(func(t slog.Handler) slog.Handler { return t.WithGroup(name) })
}

func (h *sysHandler) and(f func(slog.Handler) slog.Handler) slog.Handler {
	n := *h
	n.with = append(slices.Clone(h.with), f)
	return &n
}

type lineWriter []byte

func (w *lineWriter) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}
