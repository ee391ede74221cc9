package admin

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgproxy/monitor"
	"pgproxy/pgtest"
	"pgproxy/router"
	"pgproxy/wire"
)

// failover is what a monitor would say.
type failover struct{}

func (failover) States() []monitor.State {
	return []monitor.State{{Database: "app", Timeline: 2, Halted: router.HaltedContest, Patroni: "ok", Paused: true}}
}

func (failover) Events() []monitor.Event {
	return []monitor.Event{{At: time.Now(), Database: "app", Server: "10.0.0.1:5432", Kind: "role", Text: "primary"}}
}

func (failover) Hold(database, target string, _ time.Duration) (*monitor.Switchover, error) {
	return nil, errors.New("server " + target + " of " + database + " is down")
}

func TestTopologyAndEvents(t *testing.T) {
	r := newRig(t)
	r.Console.opt.Failover = failover{}
	c := r.admin()
	_, rows := table(t, c, "SHOW TOPOLOGY")
	x := where(rows, "database", "app")
	if x["role"] != "primary" || x["state"] != "up" || x["lsn"] != "1/FF" || x["patroni"] != "ok, paused" ||
		!strings.HasPrefix(x["writes"], "wait: more than one server") {
		t.Errorf("%v", x)
	}
	if _, rows := table(t, c, "SHOW EVENTS"); len(rows) != 1 || rows[0]["event"] != "role" || rows[0]["server"] != "10.0.0.1:5432" {
		t.Errorf("%v", rows)
	}
	for sql, code := range map[string]string{
		"SWITCHOVER app TO 10.0.0.2:5432": wire.CodeObjectNotInState,
		"SWITCHOVER app":                  wire.CodeProtocolViolation,
		"SWITCHOVER app TO nothing":       wire.CodeProtocolViolation,
		"SWITCHOVER none TO 10.0.0.2:1":   wire.CodeUndefinedDatabase,
		"RELOAD app TO 10.0.0.2:1":        wire.CodeProtocolViolation,
	} {
		c.Send(pgtest.Query(sql))
		var e *wire.Error
		for _, m := range c.ReadUntilReady() {
			if m.Type == wire.ErrorResponse {
				e = m.Err()
			}
		}
		if e == nil || e.Code != code {
			t.Errorf("%s: %v, want %s", sql, e, code)
		}
	}
}
