package metrics

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"time"
)

// listener is the HTTP server while it runs.
type listener struct {
	srv  *http.Server
	addr net.Addr
	done chan struct{} // closed when its goroutine has ended
}

// Bounds of a request: nothing that is served here takes one of any length.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	writeTimeout  = 30 * time.Second
	idleTimeout   = time.Minute
	maxHeader     = 16 << 10
)

var errListening = errors.New("already listening")

// Listen starts to serve HTTP on an address. Close ends it.
func (m *Metrics) Listen(addr string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.http != nil {
		return errListening
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	h := &listener{addr: l.Addr(), done: make(chan struct{}), srv: &http.Server{
		Handler: m.handler, ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: log.New(io.Discard, "", 0), // what strangers send is not worth a line each
	}}
	m.http = h
	go func() {
		defer close(h.done)
		_ = h.srv.Serve(l)
	}()
	return nil
}

// Addr returns the address that is listened on, or nil.
func (m *Metrics) Addr() net.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.http == nil {
		return nil
	}
	return m.http.addr
}

// Close ends the HTTP server, if there is one, and waits for its goroutine.
func (m *Metrics) Close() error {
	m.mu.Lock()
	h := m.http
	m.http = nil
	m.mu.Unlock()
	if h == nil {
		return nil
	}
	err := h.srv.Close()
	<-h.done
	return err
}
