package proxy

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"pgproxy/config"
)

// Socket is what clients come to.
type Socket struct {
	net.Listener
	Name string // what it was opened for, as "tcp 127.0.0.1:6432"; Given, if that is not known here
}

// Given is the Name of the sockets that a service manager has opened. They come in
// place of all that the configuration names.
const Given = "given"

// Listen opens the listeners that the configuration names. Those that another
// process has opened before are used if they are wanted, else closed. On error
// none stays open.
func (s *Server) Listen(inherited ...Socket) error {
	p := &s.current.Load().Config.Proxy
	ls, err := takeListeners(s.ctx, p, inherited)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s.mu.Lock()
	s.listeners = append(s.listeners, ls...)
	s.mu.Unlock()
	s.unsteerAll()
	for _, l := range ls {
		s.log.Info("listening", "address", l.Addr().String())
		s.goes.Add(1)
		go s.accept(l)
	}
	return nil
}

// Sockets returns what is listened on.
func (s *Server) Sockets() []Socket {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.listeners)
}

// Own makes the files of inherited sockets this server's, which removes them at its
// end. Before that another process may go on with them.
func (s *Server) Own() { s.unlinkOnClose(true) }

// Leave closes the listeners as they are another process's from now on: the files of
// sockets stay. Shutdown comes next.
func (s *Server) Leave() {
	s.unlinkOnClose(false)
	s.stopListening(func(Socket) bool { return true })
}

func (s *Server) unlinkOnClose(yes bool) {
	for _, l := range s.Sockets() {
		if u, ok := l.Listener.(*net.UnixListener); ok && l.Name != Given {
			u.SetUnlinkOnClose(yes)
		}
	}
}

// takeListeners returns the listeners that a configuration wants. It owns those
// that are inherited.
func takeListeners(ctx context.Context, cfg *config.Proxy, inherited []Socket) (ls []Socket, err error) {
	defer func() {
		unused := inherited
		if err != nil {
			unused, ls = append(ls, inherited...), nil
		}
		for _, l := range unused {
			_ = l.Close()
		}
	}()
	names := listenNames(cfg)
	if slices.ContainsFunc(inherited, func(l Socket) bool { return l.Name == Given }) {
		names = slices.Repeat([]string{Given}, len(inherited))
	}
	for _, name := range names {
		l := Socket{Name: name}
		if i := slices.IndexFunc(inherited, func(l Socket) bool { return l.Name == name }); i >= 0 {
			l.Listener = adopt(inherited[i], cfg)
			inherited = slices.Delete(inherited, i, i+1)
		} else if name == Given {
			continue // others than these are not
		} else if l.Listener, err = open(ctx, cfg, name); err != nil {
			return ls, err
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// listenNames are the Names of all that a configuration wants.
func listenNames(cfg *config.Proxy) (names []string) {
	for _, a := range cfg.ListenAddr {
		if a == "*" {
			a = ""
		}
		names = append(names, "tcp "+net.JoinHostPort(a, strconv.Itoa(cfg.ListenPort)))
	}
	if cfg.UnixSocketDir != "" {
		names = append(names, "unix "+socketPath(cfg))
	}
	return names
}

// open opens a listener by its Name.
func open(ctx context.Context, cfg *config.Proxy, name string) (net.Listener, error) {
	network, addr, _ := strings.Cut(name, " ")
	if network == "unix" {
		return listenUnix(cfg)
	}
	lc := net.ListenConfig{KeepAliveConfig: keepAlive(cfg)}
	if cfg.SoReuseport {
		lc.Control = ReusePort
		lc.SetMultipathTCP(false) // whose sockets cannot be steered
	}
	return lc.Listen(ctx, network, addr)
}

func keepAlive(cfg *config.Proxy) net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: cfg.TCPKeepalive, Idle: cfg.TCPKeepIdle, Interval: cfg.TCPKeepIntvl, Count: cfg.TCPKeepCnt}
}

// adopt makes an inherited listener like one that was opened here.
func adopt(l Socket, cfg *config.Proxy) net.Listener {
	if tcp, ok := l.Listener.(*net.TCPListener); ok {
		return &adopted{tcp, keepAlive(cfg)}
	}
	return l.Listener
}

// adopted is a listener that sets up its connections as a net.ListenConfig does.
type adopted struct {
	*net.TCPListener
	keepAlive net.KeepAliveConfig
}

// Accept implements net.Listener.
func (l *adopted) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	_ = c.SetKeepAliveConfig(l.keepAlive)
	return c, nil
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
