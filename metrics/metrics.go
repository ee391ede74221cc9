package metrics

import (
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"pgproxy/monitor"
	"pgproxy/pool"
	"pgproxy/proxy"
)

// Health tells how servers are. Package monitor has the real one.
type Health interface {
	Status() []monitor.Status
	States() []monitor.State
}

// Options for Metrics. Pools must be given.
type Options struct {
	Pools   *pool.Set
	Monitor Health // nil: nothing is known of servers
	Version string
}

// Metrics serves what the proxy counts, and whether it is well.
type Metrics struct {
	// Set at construction.
	opt     Options
	handler http.Handler

	// Atomic.
	server                 atomic.Pointer[proxy.Server]
	loginsOK, loginsFailed counter

	// Guarded by mu.
	mu   sync.Mutex
	http *listener
}

// New makes Metrics. The server comes later, by Observe, since it wants the
// Trace first.
func New(opt Options) *Metrics {
	m := &Metrics{opt: opt}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collector{m}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	// One bad metric, such as a server that is listed twice, must not cost all.
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4,
	}))
	mux.HandleFunc("GET /healthz", m.healthz)
	mux.HandleFunc("GET /readyz", m.readyz)
	mux.HandleFunc("GET /primary", m.targetz("primary"))
	mux.HandleFunc("GET /replica", m.targetz("replica"))
	m.handler = mux
	return m
}

// Observe supplies the server. Before that it is not ready.
func (m *Metrics) Observe(s *proxy.Server) { m.server.Store(s) }

// Handler serves /metrics, /healthz, /readyz, /primary and /replica, to anybody and for reading
// only.
func (m *Metrics) Handler() http.Handler { return m.handler }
