package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"pgproxy/config"
)

// Listen opens the listeners that the configuration names; those that the
// service manager has opened, if there are any, come instead. On error none stays
// open.
func (s *Server) Listen(inherited ...net.Listener) error {
	ls := inherited
	if len(ls) == 0 {
		var err error
		if ls, err = listenAll(s.ctx, &s.current.Load().Config.Proxy); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.listeners = append(s.listeners, ls...)
	s.mu.Unlock()
	for _, l := range ls {
		s.log.Info("listening", "address", l.Addr().String())
		s.goes.Add(1)
		go s.accept(l)
	}
	return nil
}

func listenAll(ctx context.Context, cfg *config.Proxy) (ls []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range ls {
				_ = l.Close()
			}
			ls, err = nil, fmt.Errorf("listen: %w", err)
		}
	}()
	lc := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{
		Enable: cfg.TCPKeepalive, Idle: cfg.TCPKeepIdle, Interval: cfg.TCPKeepIntvl, Count: cfg.TCPKeepCnt,
	}}
	if cfg.SoReuseport {
		lc.Control = reusePort
	}
	for _, a := range cfg.ListenAddr {
		if a == "*" {
			a = ""
		}
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(a, strconv.Itoa(cfg.ListenPort)))
		if err != nil {
			return ls, err
		}
		ls = append(ls, l)
	}
	if cfg.UnixSocketDir != "" {
		l, err := listenUnix(cfg)
		if err != nil {
			return ls, err
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// reusePort lets other processes listen on the same address.
func reusePort(_, _ string, raw syscall.RawConn) error {
	var serr error
	err := raw.Control(func(fd uintptr) { serr = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return errors.Join(err, serr)
}

// socketPath is the name of the Unix socket.
func socketPath(cfg *config.Proxy) string {
	return filepath.Join(cfg.UnixSocketDir, fmt.Sprintf(".s.PGSQL.%d", cfg.ListenPort))
}

// listenUnix listens on a Unix socket, in place of a file that nobody serves.
func listenUnix(cfg *config.Proxy) (net.Listener, error) {
	path := socketPath(cfg)
	l, err := net.Listen("unix", path)
	if strings.HasPrefix(path, "@") { // it has no file
		return l, err
	}
	if err != nil {
		if nc, derr := net.Dial("unix", path); derr == nil {
			_ = nc.Close()
			return nil, fmt.Errorf("%s is served by another process", path)
		}
		if rerr := os.Remove(path); rerr != nil {
			return nil, err
		}
		if l, err = net.Listen("unix", path); err != nil {
			return nil, err
		}
	}
	if err := ownSocket(path, cfg); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// ownSocket gives the socket's file its group and mode. Whoever may write to it
// may connect.
func ownSocket(path string, cfg *config.Proxy) error {
	if cfg.UnixSocketGroup != "" {
		id, err := strconv.Atoi(cfg.UnixSocketGroup)
		if err != nil {
			g, err := user.LookupGroup(cfg.UnixSocketGroup)
			if err != nil {
				return fmt.Errorf("unix_socket_group: %w", err)
			}
			if id, err = strconv.Atoi(g.Gid); err != nil {
				return fmt.Errorf("unix_socket_group: %w", err)
			}
		}
		if err := os.Chown(path, -1, id); err != nil {
			return fmt.Errorf("unix_socket_group: %w", err)
		}
	}
	if err := os.Chmod(path, os.FileMode(cfg.UnixSocketMode)); err != nil {
		return fmt.Errorf("unix_socket_mode: %w", err)
	}
	return nil
}
