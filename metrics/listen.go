package metrics

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"time"
)

// listener is the HTTP server while it runs.
type listener struct {
	net.Listener
	srv  *http.Server
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

// Serve serves HTTP on a listener, which it owns. Close ends it.
func (m *Metrics) Serve(l net.Listener) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.http != nil {
		_ = l.Close()
		return errListening
	}
	h := &listener{Listener: l, done: make(chan struct{}), srv: &http.Server{
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

// Listener returns what is listened on, or nil.
func (m *Metrics) Listener() net.Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.http == nil {
		return nil
	}
	return m.http.Listener
}

// Leave closes the listener, which is another process's from now on, and lets the
// requests that are there finish until ctx ends.
func (m *Metrics) Leave(ctx context.Context) error {
	m.mu.Lock()
	h := m.http
	m.mu.Unlock()
	if h == nil {
		return nil
	}
	return h.srv.Shutdown(ctx)
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
