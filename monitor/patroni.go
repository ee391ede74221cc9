package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"pgproxy/config"
)

// Patroni's REST API. GET /cluster of any member tells of all of them, as its
// distributed store has it; see "Patroni REST API" in its manual.

// member is one of Patroni's members.
type member struct {
	Name     string         `json:"name"`
	Role     string         `json:"role"` // leader, standby_leader, replica, sync_standby, quorum_standby
	State    string         `json:"state"`
	API      string         `json:"api_url"`
	Host     string         `json:"host"`
	Port     int            `json:"port"`
	Timeline uint32         `json:"timeline"`
	Tags     map[string]any `json:"tags"`
}

func (x *member) addr() string { return net.JoinHostPort(x.Host, strconv.Itoa(x.Port)) }

// scheduled is a switchover that Patroni will make at a time.
type scheduled struct {
	At   time.Time `json:"at"`
	From string    `json:"from"` // names of members
	To   string    `json:"to"`
}

// cluster is what Patroni said last.
type cluster struct {
	Members   []member   `json:"members"`
	Pause     bool       `json:"pause"`
	Scheduled *scheduled `json:"scheduled_switchover"`

	leader string    // address; "" is none
	at     time.Time // when it was answered; zero: never
	err    string    // why the last question was not answered; "" if it was
}

// knows reports whether Patroni has answered the last question, and so decides who
// is the primary.
func (c *cluster) knows() bool { return c != nil && !c.at.IsZero() && c.err == "" }

// join returns the servers of the file and behind them the members that it does
// not have.
func (c *cluster) join(servers []config.Server) []config.Server {
	if c == nil {
		return servers
	}
	all := slices.Clone(servers)
	for _, x := range c.Members {
		if x.Host == "" || x.Port == 0 || slices.ContainsFunc(all, func(s config.Server) bool { return s.Addr() == x.addr() }) {
			continue
		}
		s := config.Server{Host: x.Host, Port: x.Port, Weight: 1}
		if no, _ := x.Tags["noloadbalance"].(bool); no {
			s.Weight = 0
		}
		all = append(all, s)
	}
	return all
}

func (c *cluster) describe(st *State) {
	switch {
	case c == nil:
		return
	case c.err != "":
		st.Patroni = c.err
	case c.at.IsZero():
		st.Patroni = "not asked yet"
	default:
		st.Patroni = "ok"
	}
	st.Paused = c.Pause
	if s := c.Scheduled; s != nil {
		st.Scheduled = s.From + " to " + s.To + " at " + s.At.UTC().Format(time.RFC3339)
	}
}

// Bounds of a question to Patroni.
const (
	maxPatroni     = 1 << 20         // bytes of an answer
	patroniTimeout = 2 * time.Second // for each member that is asked
	patroniPause   = 100 * time.Millisecond
)

// poller asks Patroni for one entry. Its goroutine ends with ctx.
type poller struct {
	// Set at construction.
	m        *Monitor
	entry    *entry
	urls     []string
	interval time.Duration
	ctx      context.Context
	stop     context.CancelFunc
	client   *http.Client
	kicks    chan struct{}

	// Owned by the goroutine.
	found []string // API addresses of members, the one that answered last in front
}

// ask starts, stops or replaces what asks Patroni for an entry. m.mu is held.
func (m *Monitor) ask(e *entry, cfg *config.Config, db *config.Database) {
	old := e.poller.Load()
	if old != nil && slices.Equal(old.urls, db.Patroni) && old.interval == cfg.Proxy.ServerCheckInterval {
		return
	}
	e.stopPatroni()
	e.mu.Lock()
	switch {
	case len(db.Patroni) == 0:
		e.patroni = nil
	case e.patroni == nil:
		e.patroni = &cluster{}
	}
	e.mu.Unlock()
	if len(db.Patroni) == 0 {
		return
	}
	p := &poller{
		m: m, entry: e, urls: db.Patroni, interval: cfg.Proxy.ServerCheckInterval, kicks: make(chan struct{}, 1),
		client: &http.Client{Timeout: patroniTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute}},
	}
	p.ctx, p.stop = context.WithCancel(m.ctx)
	e.poller.Store(p)
	m.goes.Go(p.run)
}

// stopPatroni ends the asking. Its goroutine may still be on its way out.
func (e *entry) stopPatroni() {
	if p := e.poller.Swap(nil); p != nil {
		p.stop()
	}
}

// kick has Patroni asked at once.
func (p *poller) kick() {
	select {
	case p.kicks <- struct{}{}:
	default:
	}
}

func (p *poller) run() {
	defer p.client.CloseIdleConnections()
	for {
		began := time.Now()
		c, err := p.question()
		if p.ctx.Err() != nil {
			return
		}
		p.m.answered(p, c, err)
		wait := time.Duration(float64(p.interval) * (0.9 + 0.2*rand.Float64()))
		if c != nil && c.Scheduled != nil {
			// What is planned for a moment is not to be missed by one question.
			if d := time.Until(c.Scheduled.At.Add(-holdLead)); d > 0 {
				wait = min(wait, d)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-p.kicks:
			timer.Reset(time.Until(began.Add(patroniPause))) // however often it is kicked
			select {
			case <-timer.C:
			case <-p.ctx.Done():
			}
		case <-p.ctx.Done():
		}
		timer.Stop()
		if p.ctx.Err() != nil {
			return
		}
	}
}

// question asks one member after the other until one answers.
func (p *poller) question() (*cluster, error) {
	var first error
	for i, url := range p.addresses() {
		c, err := p.get(url)
		if err == nil {
			p.remember(c, url)
			return c, nil
		}
		if p.ctx.Err() != nil {
			return nil, err
		}
		if i == 0 || first == nil {
			first = err
		}
	}
	return nil, first
}

// addresses are those to ask: first the one that answered last, then those of the
// file, then those that Patroni has listed.
func (p *poller) addresses() []string {
	var out []string
	for _, u := range slices.Concat(p.found[:min(1, len(p.found))], p.urls, p.found) {
		u = strings.TrimRight(u, "/")
		if !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out
}

func (p *poller) remember(c *cluster, answered string) {
	p.found = append(p.found[:0], answered)
	for _, x := range c.Members {
		if root, ok := strings.CutSuffix(x.API, "/patroni"); ok {
			p.found = append(p.found, root)
		}
	}
}

func (p *poller) get(root string) (*cluster, error) {
	req, err := http.NewRequestWithContext(p.ctx, http.MethodGet, root+"/cluster", nil)
	if err != nil {
		return nil, err
	}
	res, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s/cluster: %s", root, res.Status)
	}
	return readCluster(io.LimitReader(res.Body, maxPatroni))
}

// readCluster reads the answer to /cluster.
func readCluster(r io.Reader) (*cluster, error) {
	c := &cluster{}
	if err := json.NewDecoder(r).Decode(c); err != nil {
		return nil, fmt.Errorf("answer to /cluster: %w", err)
	}
	if len(c.Members) == 0 {
		return nil, fmt.Errorf("answer to /cluster: no members")
	}
	for i := range c.Members {
		if x := &c.Members[i]; x.Role == "leader" || x.Role == "master" {
			c.leader = x.addr()
		}
	}
	return c, nil
}

// answered takes in what Patroni said, or that it said nothing.
func (m *Monitor) answered(p *poller, c *cluster, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := p.entry
	if m.closed || e.poller.Load() != p {
		return
	}
	e.mu.Lock()
	old := e.patroni
	if err != nil {
		silent := *old
		silent.err = words(err)
		if old.err == "" {
			text := silent.err
			e.noteLocked(nil, "patroni", "no answer: "+text, func() { e.log.Warn("patroni does not answer", "error", text) })
		}
		e.patroni = &silent
		e.publishLocked()
		e.unlock()
		return
	}
	c.at = time.Now()
	e.patroni = c
	e.noteClusterLocked(old, c)
	e.followPlanLocked(old, c)
	changed := !sameServers(old.join(e.db.Servers), c.join(e.db.Servers))
	if !changed {
		e.publishLocked()
	}
	cfg, db := e.cfg, e.db
	e.unlock()
	if changed {
		var x change
		m.configure(e, cfg, db, &x)
		m.carryOut(&x)
	}
}

func sameServers(a, b []config.Server) bool {
	return slices.EqualFunc(a, b, func(x, y config.Server) bool { return x.Addr() == y.Addr() && x.Weight == y.Weight })
}

// noteClusterLocked notes what is new in an answer.
func (e *entry) noteClusterLocked(old, c *cluster) {
	if old.err != "" || old.at.IsZero() {
		e.noteLocked(nil, "patroni", "answers, leader "+orNone(c.leader), func() { e.log.Info("patroni answers", "leader", c.leader) })
	} else if old.leader != c.leader {
		e.noteLocked(nil, "patroni", "leader "+orNone(c.leader)+", before it was "+orNone(old.leader), func() {
			e.log.Info("patroni has another leader", "leader", c.leader, "was", old.leader)
		})
	}
	if old.Pause != c.Pause {
		text := "maintenance mode is off"
		if c.Pause {
			text = "maintenance mode is on"
		}
		e.noteLocked(nil, "patroni", text, func() { e.log.Info("patroni changes its mode", "pause", c.Pause) })
	}
}

func orNone(addr string) string {
	if addr == "" {
		return "none"
	}
	return addr
}

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
