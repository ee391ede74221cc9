package admin

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"pgproxy/config"
	"pgproxy/proxy"
	"pgproxy/wire"
)

// codeConfigFile is PostgreSQL's config_file_error.
const codeConfigFile = "F0000"

func (c *call) config() *config.Config { return c.console.opt.Server.Settings().Config }

func (c *call) notice(format string, args ...any) *wire.Error {
	n := wire.Errorf("00000", format, args...)
	n.Severity = wire.SeverityNotice
	c.notices = append(c.notices, n)
	return n
}

// database checks the argument of a command that says "cannot VERB admin db" of
// the console's own. "" stands for all.
func (c *call) database(verb string) error {
	if c.arg == "" {
		return nil
	}
	if slices.Contains(proxy.ConsoleNames, c.arg) {
		return wire.Errorf(wire.CodeFeatureNotSupported, "cannot %s admin db: %s", verb, c.arg)
	}
	if _, ok := c.config().Database(c.arg); !ok {
		return wire.Errorf(wire.CodeUndefinedDatabase, "no such database: %s", c.arg)
	}
	return nil
}

func reload(c *call) error {
	if err := c.console.opt.Reload(); err != nil {
		e := wire.Errorf(codeConfigFile, "RELOAD failed, see logs for additional details").Because(err)
		e.Detail = "Nothing has changed: " + err.Error()
		return e
	}
	return nil
}

var errPaused = wire.Errorf(wire.CodeObjectNotInState, "already suspended/paused")

// pauseWait is a PAUSE whose servers are not all free yet.
type pauseWait struct {
	database string
	end      context.CancelFunc // by RESUME
	ended    chan struct{}      // closed when it waits no more
}

// pause blocks until nothing is lent any more. It ends early when its client
// leaves, which undoes it, or when another admin resumes the database.
func pause(c *call) error {
	pools := c.console.opt.Pools
	if pools.Paused("") {
		return errPaused
	}
	if err := c.database("pause"); err != nil {
		return err
	}
	ctx, end := context.WithCancel(c.ctx)
	w := &pauseWait{database: c.arg, end: end, ended: make(chan struct{})}
	first := !pools.Paused(c.arg)
	c.console.mu.Lock()
	for o := range c.console.pauses {
		first = first && o.database != c.arg
	}
	c.console.pauses[w] = struct{}{}
	c.console.mu.Unlock()

	err := pools.Pause(ctx, c.arg)

	end()
	c.console.mu.Lock()
	delete(c.console.pauses, w)
	c.console.mu.Unlock()
	close(w.ended)
	switch {
	case err == nil:
		return nil
	case c.ctx.Err() == nil:
		return wire.Errorf(wire.CodeQueryCanceled, "PAUSE was ended by RESUME")
	case first:
		pools.Resume(c.arg)
		c.console.log.Warn("pause undone: its client left before it was complete", "database", c.arg)
	}
	return wire.Errorf(wire.CodeQueryCanceled, "PAUSE was ended: its client has left")
}

// endPauses makes every PAUSE of a database return and waits until it has; of
// "", all.
func (c *Console) endPauses(database string) bool {
	c.mu.Lock()
	var list []*pauseWait
	for w := range c.pauses {
		if database == "" || w.database == database {
			list = append(list, w)
		}
	}
	c.mu.Unlock()
	for _, w := range list {
		w.end()
		<-w.ended
	}
	return len(list) > 0
}

func resume(c *call) error {
	s, pools := c.console.opt.Server, c.console.opt.Pools
	if c.arg == "" {
		if s.Draining() {
			return wire.Errorf(wire.CodeObjectNotInState, "pooler is shutting down")
		}
		waiting := c.console.endPauses("")
		if !pools.Resume("") && !waiting {
			return wire.Errorf(wire.CodeObjectNotInState, "pooler is not paused/suspended")
		}
		return nil
	}
	if err := c.database("resume"); err != nil {
		return err
	}
	notPaused := wire.Errorf(wire.CodeObjectNotInState, "database %s is not paused", c.arg)
	if pools.Paused("") {
		return notPaused.WithHint("All databases are paused: RESUME without a name ends that.")
	}
	waiting := c.console.endPauses(c.arg)
	if !pools.Resume(c.arg) && !waiting {
		return notPaused
	}
	return nil
}

// kill cuts clients and servers. As in PgBouncer the database stays paused.
func kill(c *call) error {
	s, pools := c.console.opt.Server, c.console.opt.Pools
	if pools.Paused("") {
		return errPaused
	}
	if err := c.database("kill"); err != nil {
		return err
	}
	list := []string{c.arg}
	if c.arg == "" {
		list = c.databasesInUse()
	}
	now, end := context.WithCancel(context.Background())
	end()
	for _, db := range list {
		_ = pools.Pause(now, db) // only marks it
		s.Kill(db)
		pools.Kill(db)
	}
	return nil
}

func killClient(c *call) error {
	id, err := strconv.ParseUint(c.arg, 10, 64)
	if err != nil {
		return wire.Errorf(wire.CodeInvalidParameterValue, "invalid client pointer supplied")
	}
	if !c.console.opt.Server.KillClient(id) {
		return wire.Errorf(wire.CodeUndefinedObject, "client not found")
	}
	return nil
}

func reconnect(c *call) error {
	if err := c.database("reconnect"); err != nil {
		return err
	}
	c.console.opt.Pools.Reconnect(c.arg)
	return nil
}

func disable(c *call) error {
	if err := c.database("disable"); err != nil {
		return err
	}
	c.console.opt.Server.SetDisabled(c.arg, true)
	return nil
}

func enable(c *call) error {
	if err := c.database("enable"); err != nil {
		return err
	}
	c.console.opt.Server.SetDisabled(c.arg, false)
	return nil
}

func waitClose(c *call) error {
	if err := c.database("wait in"); err != nil {
		return err
	}
	if err := c.console.opt.Pools.WaitClose(c.ctx, c.arg); err != nil {
		return wire.Errorf(wire.CodeQueryCanceled, "WAIT_CLOSE was ended: its client has left")
	}
	return nil
}

// suspend holds everything back as it is: the server connections stay open. What
// is not at rest after suspend_timeout is cut.
func suspend(c *call) error {
	s, pools := c.console.opt.Server, c.console.opt.Pools
	if pools.Paused("") {
		return errPaused
	}
	if pools.AnyPaused() {
		return wire.Errorf(wire.CodeObjectNotInState, "cannot suspend with paused databases")
	}
	ctx, end := context.WithCancel(c.ctx)
	defer end()
	if d := c.config().Proxy.SuspendTimeout; d > 0 {
		t := time.AfterFunc(d, s.EndBusy)
		defer t.Stop()
	}
	w := &pauseWait{end: end, ended: make(chan struct{})}
	c.console.mu.Lock()
	c.console.pauses[w] = struct{}{}
	c.console.mu.Unlock()

	err := pools.Suspend(ctx)

	c.console.mu.Lock()
	delete(c.console.pauses, w)
	c.console.mu.Unlock()
	close(w.ended)
	switch {
	case err == nil:
		return nil
	case c.ctx.Err() == nil:
		return wire.Errorf(wire.CodeQueryCanceled, "SUSPEND was ended by RESUME")
	}
	pools.Resume("")
	c.console.log.Warn("suspend undone: its client left before it was complete")
	return wire.Errorf(wire.CodeQueryCanceled, "SUSPEND was ended: its client has left")
}

// shutdownModes are the words behind SHUTDOWN.
var shutdownModes = []string{"", "WAIT_FOR_SERVERS", "WAIT_FOR_CLIENTS"}

func shutdown(c *call) error {
	mode := strings.ToUpper(c.arg)
	if !slices.Contains(shutdownModes, mode) {
		st := statement{text: "SHUTDOWN " + c.arg}
		return st.invalid()
	}
	c.console.opt.Shutdown(mode)
	return nil
}

// fakeParams are what drivers ask for or set without need; see PgBouncer's
// fake_param_list.
var fakeParams = []struct{ name, value string }{
	{"client_encoding", "UTF-8"},
	{"default_transaction_isolation", "read committed"},
	{"standard_conforming_strings", "on"},
	{"datestyle", "ISO"},
	{"timezone", "GMT"},
}

// driverParams are more of them, which PgBouncer refuses.
var driverParams = []string{
	"application_name", "bytea_output", "client_min_messages", "extra_float_digits", "idle_in_transaction_session_timeout",
	"intervalstyle", "lock_timeout", "search_path", "statement_timeout", "transaction",
}

// ignored reports whether SET of a key does nothing, for anybody.
func ignored(key string) bool {
	for _, p := range fakeParams {
		if p.name == key {
			return true
		}
	}
	return slices.Contains(driverParams, key)
}

var ignoredSet = &entry{name: "SET", readOnly: true, run: func(c *call) error {
	_ = c.notice("SET ignored") // it is sent with the rest
	return nil
}}

// set changes a key until the next RELOAD. As in PgBouncer one that needs a restart
// keeps its value; here that is said. The value is not repeated in errors, it may
// be a secret.
func set(c *call) error {
	i := slices.IndexFunc(config.Keys(), func(k config.Key) bool { return k.Name == c.arg })
	if i >= 0 && !config.Keys()[i].Changeable {
		_ = c.notice("%s stays as it is until a restart", c.arg)
		return nil
	}
	if err := c.console.opt.Set(c.arg, c.value); err != nil {
		e := wire.Errorf(wire.CodeInvalidParameterValue, "SET failed").Because(err).WithHint("SHOW CONFIG lists the keys.")
		e.Detail = err.Error()
		return e
	}
	return nil
}
