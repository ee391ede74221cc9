package backend

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"pgproxy/wire"
)

// What the proxy itself sends to a server: in front of a client's messages
// (settings, prepared statements), or while the connection is lent to nobody.

// Adopt appends to owed and dst what turns the connection's settings into those
// wanted: bound set_config calls, each with a Sync of its own, all swallowed. It
// notes them as applied. The connection must be kept with Lend or Hold; a
// following Send must carry what was appended first. risky says that the server
// may refuse one of them, although it has accepted it before, or that one may run
// into a short timeout: the client's statement must wait for the answer.
func (c *Conn) Adopt(want *Settings, owed []Owed, dst []byte) (_ []Owed, _ []byte, risky bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.applied.Load() == want {
		return owed, dst, false
	}
	statement := func(sql string, params ...string) {
		c.counts.Adopted++
		dst = wire.AppendParse(dst, "", []byte(sql), nil)
		dst = wire.AppendBindText(dst, "", params...)
		dst = wire.AppendExecute(dst)
		dst = wire.AppendSync(dst)
		owed = append(owed,
			Owed{Kind: Parse, Do: Swallow, Own: true, Sets: true}, Owed{Kind: Bind, Do: Swallow, Own: true, Sets: true},
			Owed{Kind: Execute, Do: Swallow, Own: true, Sets: true}, Owed{Kind: Sync, Do: Swallow, Own: true, Sets: true})
		c.unnamed.Store(otherUnnamed)
	}
	set := func(s Setting) { statement("SELECT pg_catalog.set_config($1, $2, false)", s.Name, s.Value) }
	reset := func(name string) {
		if v, ok := c.home.Get(name); ok {
			set(Setting{name, v})
			return
		}
		statement("RESET " + quoteSetting(name))
	}
	have := c.applied.Load()
	haveRest, wantRest := have.Without(authSetting).Without(roleSetting), want.Without(authSetting).Without(roleSetting)
	diff(haveRest, wantRest, func(s Setting) { risky = risky || !harmless[s.Name] }, func(name string) { risky = risky || !harmless[name] })
	// A short timeout is for the client's statements, not for these: off first, on last.
	short := !have.Equal(want) && (c.short(have) || c.short(want))
	if short {
		for _, name := range timeouts {
			if _, had := have.Get(name); had {
				reset(name)
			}
			haveRest, wantRest = haveRest.Without(name), wantRest.Without(name)
		}
	}
	// What a role may set is another matter than what the login may: away from
	// roles first, to them last.
	leave := risky
	for _, name := range [...]string{authSetting, roleSetting} {
		had, _ := have.Get(name)
		wanted, _ := want.Get(name)
		leave = leave || had != wanted
	}
	if leave {
		for _, name := range [...]string{roleSetting, authSetting} {
			if _, had := have.Get(name); had {
				reset(name)
				risky = true
			}
		}
	}
	// Texts are in the client's encoding.
	encoding := func(s *Settings) *Settings {
		v, ok := s.Get(encodingSetting)
		if !ok {
			return nil
		}
		return (*Settings)(nil).With(encodingSetting, v)
	}
	diff(encoding(haveRest), encoding(wantRest), set, reset)
	diff(haveRest.Without(encodingSetting), wantRest.Without(encodingSetting), set, reset)
	if leave {
		for _, name := range [...]string{authSetting, roleSetting} {
			if v, wanted := want.Get(name); wanted {
				set(Setting{name, v})
				risky = true
			}
		}
	}
	if short {
		for _, name := range timeouts {
			if v, wanted := want.Get(name); wanted {
				set(Setting{name, v})
			}
		}
	}
	c.applied.Store(want)
	return owed, dst, risky || short
}

// Inside appends a statement of the proxy's to the client's own batch, swallowed.
// Where it fails, the batch fails.
func (c *Conn) Inside(sql string, sink Sink, owed []Owed, dst []byte) ([]Owed, []byte) {
	c.unnamed.Store(otherUnnamed)
	dst = wire.AppendParse(dst, "", []byte(sql), nil)
	dst = wire.AppendBindText(dst, "")
	dst = wire.AppendExecute(dst)
	return append(owed, Owed{Kind: Parse, Do: Swallow, Sink: sink}, Owed{Kind: Bind, Do: Swallow, Sink: sink},
		Owed{Kind: Execute, Do: Swallow, Sink: sink}), dst
}

const (
	authSetting     = "session_authorization"
	roleSetting     = "role" // behind SET ROLE
	encodingSetting = "client_encoding"
)

// harmless are the settings that every session may set: a value that one server
// connection has accepted is accepted by all.
var harmless = map[string]bool{
	"application_name": true, "bytea_output": true, "client_encoding": true, "client_min_messages": true,
	"datestyle": true, "default_transaction_isolation": true, "default_transaction_read_only": true,
	"extra_float_digits": true, "idle_in_transaction_session_timeout": true, "intervalstyle": true,
	"lock_timeout": true, "search_path": true, "standard_conforming_strings": true, "statement_timeout": true,
	"synchronous_commit": true, "timezone": true, "work_mem": true,
}

// timeouts are the settings under which a statement that changes settings may fail.
var timeouts = [...]string{"statement_timeout", "transaction_timeout"}

// short reports whether a connection with these settings has a timeout that a
// statement of the proxy's own may run into.
func (c *Conn) short(s *Settings) bool {
	for _, name := range timeouts {
		v, ok := s.Get(name)
		if !ok {
			v, ok = c.home.Get(name)
		}
		if ok && shortTime(v) {
			return true
		}
	}
	return false
}

// shortTime reports whether the value of a timeout is less than a second, or cannot
// be told. 0 is no timeout.
func shortTime(v string) bool {
	v = strings.TrimSpace(v)
	unit := strings.TrimLeft(v, "0123456789")
	n, err := strconv.Atoi(v[:len(v)-len(unit)])
	switch strings.TrimSpace(unit) {
	case "", "ms":
		return err != nil || n > 0 && n < 1000
	case "s", "min", "h", "d":
		return err != nil
	}
	return true
}

// adoptingLocked reports whether the server has been sent nothing of the client's
// yet, and is not done with its settings.
func (c *Conn) adoptingLocked() bool {
	for i := range c.q.n {
		if !c.q.at(i).Sets {
			return false
		}
	}
	return c.q.n > 0
}

// clientWaitsLocked reports whether something of a client's has been sent and is not
// answered.
func (c *Conn) clientWaitsLocked() bool {
	for i := range c.q.n {
		if !c.q.at(i).Own {
			return true
		}
	}
	return false
}

// Applied returns the settings that the connection has.
func (c *Conn) Applied() *Settings {
	return c.applied.Load()
}

// SetApplied notes which settings the server has: a client's own statement has
// changed them, or one was refused.
func (c *Conn) SetApplied(s *Settings) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applied.Store(s)
	c.unsure = false
}

// quoteSetting quotes a parameter's name, whose parts may be joined by a dot.
func quoteSetting(name string) string {
	parts := strings.Split(name, ".")
	for i, p := range parts {
		parts[i] = `"` + strings.ReplaceAll(p, `"`, `""`) + `"`
	}
	return strings.Join(parts, ".")
}

// Batch marks the start of a client's batch: statements used from here on are
// not evicted before the next call.
func (c *Conn) Batch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prep.mark = c.prep.tick
}

// HasStatement reports whether the server has s, or will have once it has done what
// was sent.
func (c *Conn) HasStatement(s *Statement) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.prep.used[s]
	return ok
}

// Prepare makes sure that the server has s. If it does not, the Parse (and the
// Close of a statement that makes room for it) are appended: swallowed for a
// re-preparation, forwarded where the client itself has sent the Parse of this
// change. For a client's Parse of what the server already has, a reply is forged,
// unless the server is to judge whether the client may have it.
func (c *Conn) Prepare(s *Statement, sink Sink, change uint64, judge bool, owed []Owed, dst []byte) ([]Owed, []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	has, unsure := c.prep.has(s)
	if unsure || !has && c.prep.left[s] > 0 {
		// The Parse, or the Close, of an earlier batch that is still under way may be
		// ignored: whatever comes of it, after these two the server has the statement once.
		dst = wire.AppendTarget(dst, wire.Close, 'S', s.Name)
		owed = append(owed, Owed{Kind: Close, Do: Swallow, Sink: sink})
	}
	if has && !unsure {
		switch {
		case change == 0:
		case judge || c.status == wire.TxFailed || !c.q.empty() || slices.ContainsFunc(owed, func(o Owed) bool { return !o.Own }):
			// In a failed transaction the server refuses most of them, and it may be
			// in one when the message arrives: let it judge.
			c.unnamed.Store(otherUnnamed)
			owed = append(owed, Owed{Kind: Parse, Sink: sink, Change: change})
			dst = wire.AppendParse(dst, "", s.Query, s.OIDs)
		default:
			owed = append(owed, Owed{Kind: Forge, Made: wire.ParseComplete, Sink: sink, Change: change})
		}
		return owed, dst
	}
	c.prep.add(s)
	owed, dst = c.makeRoomLocked(sink, false, owed, dst)
	dst = wire.AppendParse(dst, s.Name, s.Query, s.OIDs)
	do := Swallow
	if change != 0 {
		do = Forward
	}
	return append(owed, Owed{Kind: Parse, Do: do, Sink: sink, Stmt: s, Change: change}), dst
}

// The values of Conn.unnamed that are no number of a client's Parse.
const (
	noUnnamed    uint64 = 0              // the server has no unnamed statement
	otherUnnamed uint64 = math.MaxUint64 // it may have one that nobody may use
)

// Unnamed reports whether the server has the unnamed statement of this number.
func (c *Conn) Unnamed(id uint64) bool {
	return c.unnamed.Load() == id
}

// NoUnnamed notes that a simple query is about to be sent, which drops the unnamed
// statement.
func (c *Conn) NoUnnamed() {
	if c.unnamed.Load() != noUnnamed {
		c.unnamed.Store(noUnnamed)
	}
}

// DropUnnamed appends what takes away an unnamed statement that somebody else
// has left on the server: a client that has none must not find one.
func (c *Conn) DropUnnamed(sink Sink, owed []Owed, dst []byte) ([]Owed, []byte) {
	if c.unnamed.Load() == noUnnamed {
		return owed, dst
	}
	// It stays "other" until a Query or a client's Parse: this Close may be skipped.
	c.unnamed.Store(otherUnnamed)
	return append(owed, Owed{Kind: Close, Do: Swallow, Sink: sink}), wire.AppendTarget(dst, wire.Close, 'S', "")
}

// SetUnnamed notes which Parse of an unnamed statement is about to be sent.
func (c *Conn) SetUnnamed(id uint64) {
	c.unnamed.Store(id)
}

// Doubt reports whether a failed COPY has left it open how many replies are
// still to come. The next Send must then begin with AppendProbe.
func (c *Conn) Doubt() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.q.doubt > 0 && c.q.empty()
}

// AppendProbe appends an empty query whose reply marks the end of all earlier
// ones.
func AppendProbe(sink Sink, owed []Owed, dst []byte) ([]Owed, []byte) {
	return append(owed, Owed{Kind: Probe, Do: Swallow, Own: true, Sink: sink}), wire.AppendQuery(dst, "")
}

// Exec runs a statement while the connection is lent to nobody and out of its
// pool, and waits for the end of it. An error of the server's is returned as
// *wire.Error. After any other error the connection is of no more use.
func (c *Conn) Exec(sql string, timeout time.Duration) error {
	c.mu.Lock()
	if err := errors.Join(c.lost, c.last); err != nil {
		c.mu.Unlock()
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	c.failed = nil
	c.unnamed.Store(noUnnamed)
	c.q.push(Owed{Kind: Query, Do: Swallow, Own: true})
	quiet := c.quietLocked()
	c.mu.Unlock()

	c.writing.Lock()
	err := c.io.Write(wire.AppendQuery(nil, sql))
	c.writing.Unlock()
	if err != nil {
		return c.writeFailed(err)
	}
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-quiet:
	case <-t.C:
		return fmt.Errorf("server %s: no answer to %q within %v", c.Addr, sql, timeout)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost != nil {
		return fmt.Errorf("%w: %w", ErrGone, c.lost)
	}
	if c.failed != nil {
		e := c.failed
		c.failed = nil
		return e
	}
	return nil
}

// Clean brings the session back to what a login has, while the connection is lent
// to nobody and out of its pool. After an error it is of no more use.
func (c *Conn) Clean(timeout time.Duration) error {
	if err := c.Exec("DISCARD ALL", timeout); err != nil {
		return err
	}
	if c.home == nil {
		return nil
	}
	var refused *wire.Error
	if err := c.Exec(c.restore, timeout); err != nil && !errors.As(err, &refused) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirty = false
	return nil
}

// Abandon takes the connection from a client that has gone. What the client has
// left behind is rolled back and, where state was pinned, reset with the query
// given; a connection in the middle of anything is cancelled and closed.
func (c *Conn) Abandon(s Sink, reset string) {
	c.mu.Lock()
	if c.questionedLocked(s) {
		c.mu.Unlock()
		c.settle(c.limits.CancelWait)
		c.mu.Lock()
	}
	if c.share.joiner == s {
		to := c.stepBackLocked()
		c.mu.Unlock()
		c.handBack(to)
		return
	}
	if c.withdrawLocked(s) || c.holder != s {
		c.mu.Unlock()
		return
	}
	c.share.depth = 0
	c.dismissLocked(CauseHeldUp)
	whole := !c.sending && !c.batch && c.q.settled() && c.relayTo == nil && c.lost == nil && c.last == nil
	status, pinned := c.status, c.pin.why != 0
	c.holder = nil
	if !whole {
		c.late = true // Discard asks the server to stop: nobody may send behind that
		c.wakeMovedLocked()
	}
	c.unpinLocked(PinAll)
	// What a question would have told is not needed any more.
	c.dirty = c.dirty || c.ask != 0
	c.ask, c.names = 0, nil
	c.released.Store(c.now())
	c.mu.Unlock()
	if !whole {
		c.owner.Discard(c, fmt.Errorf("client left in the middle of a request"))
		return
	}
	var todo []string
	if status != wire.TxIdle {
		todo = append(todo, "ROLLBACK")
	}
	if pinned && reset != "" {
		todo = append(todo, reset)
	}
	for _, sql := range todo {
		if err := c.Exec(sql, c.limits.CancelWait); err != nil {
			c.owner.Discard(c, fmt.Errorf("clean up after client: %w", err))
			return
		}
	}
	if pinned {
		c.mu.Lock()
		c.unsure = c.unsure || c.applied.Load() != nil // a reset other than DISCARD ALL: what it has left is not known
		c.mu.Unlock()
	}
	c.finish()
}

// finish releases a connection that Abandon has cleaned, unless a cancel is
// still under way.
func (c *Conn) finish() {
	c.mu.Lock()
	clean := c.status == wire.TxIdle && c.q.settled() && c.lost == nil && c.last == nil
	c.released.Store(c.now())
	c.parked = clean && c.cancels > 0
	parked, to := c.parked, c.freeLocked()
	c.mu.Unlock()
	switch {
	case parked:
	case clean:
		c.handBack(to)
	default:
		c.owner.Discard(c, fmt.Errorf("not clean after client"))
	}
}
