package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"pgproxy/config"
	"pgproxy/router"
)

// holdLead is how long before a planned switchover new transactions are held.
const holdLead = time.Second

// hold keeps new transactions from the primary while another server becomes it.
type hold struct {
	from     *server
	timeline uint32
	planned  bool      // by Patroni; else by the console
	until    time.Time // given up then
}

// Switchover is one that is under way.
type Switchover struct {
	Primary string // address of the server that is the primary until now
	Target  string

	m       *Monitor
	entries []*entry // all that have this primary
}

// Hold begins a switchover: from now on no new transaction of the database goes to
// the primary, nor of any other database that has the same one. End must follow. It
// is given up after the time given, whatever happens.
func (m *Monitor) Hold(database, target string, most time.Duration) (*Switchover, error) {
	entries := *m.entries.Load()
	e := entries[database]
	if e == nil {
		return nil, ErrNoDatabase
	}
	primary, err := e.candidate(target)
	if err != nil {
		return nil, err
	}
	sw := &Switchover{Primary: primary, Target: target, m: m}
	for _, o := range entries {
		if o.holdBack(primary, target, time.Now().Add(most)) {
			sw.entries = append(sw.entries, o)
		}
	}
	if len(sw.entries) == 0 {
		return nil, fmt.Errorf("server %s is not the primary any more", primary)
	}
	return sw, nil
}

// candidate checks that a server may become the primary, and returns who is.
func (e *entry) candidate(target string) (primary string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	found := false
	for _, s := range e.servers {
		st := &s.state
		if st.up && st.shown == router.RolePrimary {
			primary = s.addr
		}
		if s.addr != target {
			continue
		}
		found = true
		switch {
		case st.conf.Role != config.RoleAuto:
			return "", fmt.Errorf("the role of server %s is fixed in the configuration", target)
		case !st.up:
			return "", fmt.Errorf("server %s is down", target)
		case st.shown == router.RolePrimary:
			return "", fmt.Errorf("server %s is the primary already", target)
		case st.shown != router.RoleReplica:
			return "", fmt.Errorf("server %s cannot become the primary: %s", target, st.warned)
		}
	}
	switch {
	case !found:
		return "", fmt.Errorf("database %q has no server %s", e.name, target)
	case e.hold != nil:
		return "", errors.New("a switchover is under way already")
	case primary == "":
		return "", errors.New("no primary is up")
	}
	return primary, nil
}

// holdBack holds new transactions if this server is the entry's primary.
func (e *entry) holdBack(primary, target string, until time.Time) bool {
	e.mu.Lock()
	defer e.unlock()
	for _, s := range e.servers {
		if s.addr == primary && s.state.up && s.state.shown == router.RolePrimary && e.hold == nil {
			e.hold = &hold{from: s, timeline: s.state.id.timeline, until: until}
			e.noteLocked(s, "switchover", "to "+target+": new transactions are held", func() {
				e.log.Info("switchover begins", "from", primary, "to", target)
			})
			e.publishLocked()
			return true
		}
	}
	return false
}

// endHoldLocked ends a hold when there is a new primary, or when its time is over.
func (e *entry) endHoldLocked() {
	h := e.hold
	if h == nil {
		return
	}
	for _, s := range e.servers {
		st := &s.state
		if s == h.from || !st.up || st.shown != router.RolePrimary || st.id.timeline <= h.timeline && st.id.timeline != 0 {
			continue
		}
		e.hold = nil
		e.noteLocked(s, "switchover", "complete, the primary is "+s.addr, func() { e.log.Info("switchover complete", "primary", s.addr) })
		return
	}
	if time.Now().After(h.until) {
		e.hold = nil
		e.noteLocked(h.from, "switchover", "given up: no new primary in time", func() { e.log.Warn("switchover given up", "from", h.from.addr) })
	}
}

// Wait returns the address of the new primary, or ctx's error.
func (sw *Switchover) Wait(ctx context.Context) (string, error) {
	e := sw.entries[0]
	for {
		picture := e.topology.Load()
		if picture.Halted != router.HaltedSwitchover {
			for i := range picture.Servers {
				if s := &picture.Servers[i]; s.Up && s.Role == router.RolePrimary && s.Addr != sw.Primary {
					return s.Addr, nil
				}
			}
			return "", errors.New("it was given up")
		}
		if err := sw.m.Wait(ctx, e.name, picture.Generation); err != nil {
			return "", err
		}
	}
}

// End lets transactions go on, wherever the primary is.
func (sw *Switchover) End() {
	for _, e := range sw.entries {
		e.mu.Lock()
		if h := e.hold; h != nil && !h.planned {
			e.hold = nil
			e.noteLocked(h.from, "switchover", "ended without a new primary", func() { e.log.Warn("switchover ended", "from", h.from.addr) })
			e.publishLocked()
		}
		e.unlock()
	}
}

// followPlanLocked holds transactions shortly before a switchover that Patroni has
// planned, and lets them go on if it is called off.
func (e *entry) followPlanLocked(old, c *cluster) {
	was, plan := old.Scheduled, c.Scheduled
	if plan != nil && (was == nil || !was.At.Equal(plan.At)) {
		text := "planned: " + plan.From + " to " + plan.To + " at " + plan.At.UTC().Format(time.RFC3339)
		e.noteLocked(nil, "switchover", text, func() {
			e.log.Info("patroni has planned a switchover", "at", plan.At, "from", plan.From, "to", plan.To)
		})
	}
	if plan == nil && e.hold != nil && e.hold.planned && c.leader == e.hold.from.addr {
		from := e.hold.from
		e.hold = nil
		e.noteLocked(from, "switchover", "called off", func() { e.log.Info("switchover called off", "from", from.addr) })
	}
	if plan == nil || e.hold != nil {
		return
	}
	for _, s := range e.servers {
		now := time.Now()
		most := e.db.FailoverTimeout
		if s.addr == c.leader && s.state.up && s.state.shown == router.RolePrimary && now.After(plan.At.Add(-holdLead)) && now.Before(plan.At.Add(most)) {
			e.hold = &hold{from: s, timeline: s.state.id.timeline, planned: true, until: plan.At.Add(most)}
			e.noteLocked(s, "switchover", "planned by Patroni: new transactions are held", func() { e.log.Info("switchover begins", "from", s.addr) })
		}
	}
}

// ErrNoPatroni is returned by Promote where Patroni is not configured: the operator
// promotes.
var ErrNoPatroni = errors.New("patroni is not configured")

// Promote has Patroni make the switchover. It returns when Patroni has answered.
func (sw *Switchover) Promote(ctx context.Context) error {
	for _, e := range sw.entries {
		p := e.poller.Load()
		if p == nil {
			continue
		}
		e.mu.Lock()
		c := e.patroni
		e.mu.Unlock()
		return p.switchover(ctx, c, sw.Primary, sw.Target)
	}
	return ErrNoPatroni
}

// switchover asks the leader's Patroni for it.
func (p *poller) switchover(ctx context.Context, c *cluster, from, to string) error {
	var leader, candidate *member
	for i := range c.Members {
		switch x := &c.Members[i]; x.addr() {
		case from:
			leader = x
		case to:
			candidate = x
		}
	}
	if leader == nil || candidate == nil {
		return fmt.Errorf("patroni does not list both %s and %s", from, to)
	}
	body, err := json.Marshal(map[string]string{"leader": leader.Name, "candidate": candidate.Name})
	if err != nil {
		return err
	}
	// The answer comes when it is done; the client's own timeout is for questions.
	client := &http.Client{Transport: p.client.Transport}
	root, ok := strings.CutSuffix(leader.API, "/patroni")
	if !ok {
		root = strings.TrimRight(p.urls[0], "/")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, root+"/switchover", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("patroni refuses the switchover: %s: %s", res.Status, bytes.TrimSpace(text))
	}
	p.kick()
	return nil
}
