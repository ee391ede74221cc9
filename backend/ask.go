package backend

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"pgproxy/wire"
)

// What a server is asked about the state of its session. A text alone does not
// tell what a transaction has left behind: it may have been rolled back, in whole
// or to a savepoint, or have run code of the server's. So before a connection
// is lent again the server is asked, by a statement of the proxy's own behind the
// client's last one. The client has its own answer by then.

// Ask says what the server is to be asked for.
type Ask uint8

const (
	// AskSettings asks which settings are not those of a login.
	AskSettings Ask = 1 << iota
	// AskObjects asks what there is of that which pins a connection.
	AskObjects
	// askAudit compares the answer with what we believe, and takes nothing over.
	askAudit
)

// askInterval is how often at most a server is asked whether the reason of a pin
// is gone, where no statement has given cause for it.
const askInterval = time.Second

// The questions, of rows with a kind, a name and a value. Every name is
// qualified: search_path is the client's. $1 are the names of settings that
// pg_settings does not show, since no extension has defined them.
const (
	changedSQL = `SELECT 'set', pg_catalog.lower(name), pg_catalog.current_setting(name) FROM pg_catalog.pg_settings ` +
		`WHERE source OPERATOR(pg_catalog.=) 'session' AND name OPERATOR(pg_catalog.<>) ALL ` +
		`('{transaction_isolation,transaction_read_only,transaction_deferrable}'::pg_catalog.text[]) UNION ALL ` +
		`SELECT 'set', 'role', r FROM pg_catalog.current_setting('role') r WHERE r OPERATOR(pg_catalog.<>) 'none'`
	settingsSQL = changedSQL + " UNION ALL " + namesSQL
	namesSQL    = `SELECT 'set', n, pg_catalog.current_setting(n, true) FROM pg_catalog.unnest($1::pg_catalog.text[]) n ` +
		`WHERE pg_catalog.current_setting(n, true) OPERATOR(pg_catalog.<>) ''`
	objectsSQL = `SELECT 'pin', 'lock', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_locks ` +
		`WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()) UNION ALL ` +
		`SELECT 'pin', 'temp', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_depend ` +
		`WHERE refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass ` +
		`AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()) UNION ALL ` +
		`SELECT 'pin', 'cursor', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable) UNION ALL ` +
		`SELECT 'pin', 'listen', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_listening_channels()) UNION ALL ` +
		`SELECT 'statement', name, '' FROM pg_catalog.pg_prepared_statements`
	readSQL = `SELECT 'set', n, pg_catalog.current_setting(n, true) FROM pg_catalog.unnest($1::pg_catalog.text[]) n`
	bothSQL = settingsSQL + " UNION ALL " + objectsSQL
)

var askedPins = map[string]Pin{
	"lock": PinLock, "temp": PinTemp, "cursor": PinCursor, "listen": PinListen,
}

// response gathers the rows of one question.
type response struct {
	ask        Ask
	settings   *Settings
	pins       Pin
	statements []string // prepared ones, by name
	names      []string // of settings that were asked for
	failed     bool     // there was an error, or a row that cannot be read
	long       bool     // there was a row too long
}

// maxAnswer is the longest row of an answer in bytes.
const maxAnswer = 32 << 10

// row takes over a DataRow.
func (a *response) row(h wire.Header, body []byte) {
	if h.Body > maxAnswer {
		a.failed, a.long = true, true
		return
	}
	var cols [3]string
	body = body[min(len(body), 2):]
	for i := range cols {
		if len(body) < 4 {
			a.failed = true
			return
		}
		n := int(int32(binary.BigEndian.Uint32(body)))
		if body = body[4:]; n < 0 || n > len(body) {
			a.failed = true
			return
		}
		cols[i], body = string(body[:n]), body[n:]
	}
	switch cols[0] {
	case "set":
		a.settings = a.settings.With(cols[1], cols[2])
	case "statement":
		a.statements = append(a.statements, cols[1])
	default:
		a.pins |= askedPins[cols[1]]
	}
}

// custom returns the names of those settings that pg_settings may not show.
func custom(names []string, s *Settings) []string {
	out := slices.Clone(names)
	for _, x := range s.List() {
		if strings.Contains(x.Name, ".") {
			out = append(out, x.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// arrayLiteral writes names as a text[].
func arrayLiteral(names []string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, n := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		b.WriteString(strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(n))
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

// appendQuestion appends a question and what is owed for it.
func appendQuestion(sql string, names []string, owed []Owed, dst []byte) ([]Owed, []byte) {
	dst = wire.AppendParse(dst, "", []byte(sql), nil)
	if strings.Contains(sql, "$1") {
		dst = wire.AppendBindText(dst, "", arrayLiteral(names))
	} else {
		dst = wire.AppendBindText(dst, "")
	}
	dst = wire.AppendExecute(dst)
	dst = wire.AppendSync(dst)
	for _, k := range [...]Kind{Parse, Bind, Execute, Sync} {
		owed = append(owed, Owed{Kind: k, Do: Swallow, Own: true, Answer: true})
	}
	return owed, dst
}

// AppendRead appends the question what the values of these settings are. The
// answer is in State.Read when nothing is owed any more. The connection must be
// kept with Lend or Hold, and nothing be owed; a following Send must carry what
// was appended.
func (c *Conn) AppendRead(names []string, owed []Owed, dst []byte) ([]Owed, []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = &response{}
	c.unnamed.Store(otherUnnamed)
	return appendQuestion(readSQL, names, owed, dst)
}

// dueLocked reports whether the server is to be asked something before the
// connection, which is at rest, can be detached. now is the time if it is known,
// else 0.
func (c *Conn) dueLocked(now int64) bool {
	if c.ask == 0 && c.pin.why&(askable|PinSetting) != 0 {
		if now == 0 {
			now = c.now()
		}
		if now-c.asked > int64(askInterval) {
			c.ask = AskObjects
			if c.pin.why&PinSetting != 0 {
				c.ask |= AskSettings
			}
		}
	}
	if c.ask == 0 && c.auditDueLocked(now) {
		c.ask = AskSettings | AskObjects | askAudit
	}
	return c.ask != 0
}

// askLocked prepares the question that is due. Its caller must call handBack,
// without the mutex, which writes it. Hold keeps the client's goroutine from
// overtaking it.
func (c *Conn) askLocked() whereTo {
	sql := bothSQL
	switch c.ask &^ askAudit {
	case AskSettings:
		sql = settingsSQL
	case AskObjects:
		sql = objectsSQL
	}
	var owed []Owed
	owed, c.question = appendQuestion(sql, custom(c.names, c.applied.Load()), nil, nil)
	for _, o := range owed {
		c.q.push(o)
	}
	c.answer = &response{ask: c.ask}
	c.asked = c.now()
	if c.ask&askAudit != 0 {
		c.audited = c.asked
	}
	if c.ask&AskSettings != 0 {
		c.answer.names, c.names = c.names, nil
	}
	c.ask, c.share.depth = 0, 0
	c.unnamed.Store(otherUnnamed)
	return toServer
}

// sendQuestion writes what askLocked has prepared.
func (c *Conn) sendQuestion() {
	c.mu.Lock()
	p := c.question
	c.mu.Unlock()
	c.writing.Lock()
	err := c.io.Write(p)
	c.writing.Unlock()
	if err != nil {
		_ = c.writeFailed(err)
	}
}

// questionedLocked reports whether nothing is owed to s but the answer to a
// question.
func (c *Conn) questionedLocked(s Sink) bool {
	return c.answer != nil && c.holder == s && !c.sending && c.lost == nil && c.onlyAnswersLocked()
}

// onlyAnswersLocked reports whether nothing is owed but the answer to a question.
func (c *Conn) onlyAnswersLocked() bool {
	for i := range c.q.n {
		if !c.q.at(i).Answer {
			return false
		}
	}
	return true
}

// awaitAnswerLocked waits for the answer to a question: what the client sends next
// may belong on another connection.
func (c *Conn) awaitAnswerLocked(s Sink) {
	for c.questionedLocked(s) && c.forsaken != s {
		ch := c.quietLocked()
		c.mu.Unlock()
		<-ch
		c.mu.Lock()
	}
}

// answeredLocked acts on a whole answer.
func (c *Conn) answeredLocked() {
	a := c.answer
	c.answer = nil
	if a == nil {
		return
	}
	switch {
	case a.ask == 0:
		if !a.failed {
			c.read = a.settings
		}
		return
	case a.ask&askAudit != 0:
		c.auditedLocked(a)
		return
	case a.failed:
		c.names = append(a.names, c.names...) // for the next question
		switch {
		case a.ask&AskSettings == 0:
		case a.long:
			c.foundLocked(c.pin.why&PinState | PinHidden) // it would be no shorter then
		default:
			c.foundLocked(c.pin.why&PinState | PinSetting)
		}
		return
	}
	keep := c.pin.why & PinState
	if a.ask&AskSettings != 0 {
		raw := c.rawLocked(a)
		normal := c.normalLocked(raw)
		c.applied.Store(normal)
		c.unsure = false
		for _, x := range c.home.List() {
			if _, ok := raw.Get(x.Name); !ok {
				c.dirty = true // it was reset
			}
		}
		if f, ok := c.holder.(Follower); ok {
			f.Followed(raw, normal)
		}
		keep &^= PinSetting
	}
	if a.ask&AskObjects != 0 {
		keep = keep&^askable | a.pins
		if len(c.foreignLocked(a.statements)) > 0 {
			keep |= PinPrepare
		}
	}
	c.foundLocked(keep)
}

// rawLocked returns the settings of an answer, with that which the server reports
// by itself alone.
func (c *Conn) rawLocked(a *response) *Settings {
	if v := c.params[authSetting]; v != c.login[authSetting] {
		return a.settings.With(authSetting, v)
	}
	return a.settings
}

// foreignLocked returns those of a server's prepared statements that the proxy has
// not made.
func (c *Conn) foreignLocked(names []string) (out []string) {
	if len(names) == 0 {
		return nil
	}
	ours := make(map[string]bool, len(c.prep.used))
	for s := range c.prep.used {
		ours[s.Name] = true
	}
	for _, n := range names {
		if !ours[n] {
			out = append(out, n)
		}
	}
	return out
}

// normalLocked leaves out what is as a login has it.
func (c *Conn) normalLocked(s *Settings) *Settings {
	for _, x := range c.home.List() {
		if v, ok := s.Get(x.Name); ok && v == x.Value {
			s = s.Without(x.Name)
		}
	}
	for name, v := range c.login {
		name = strings.ToLower(name)
		if w, ok := s.Get(name); ok && v == w {
			s = s.Without(name)
		}
	}
	return s
}

// foundLocked takes over what pins the connection, as the server has told.
func (c *Conn) foundLocked(state Pin) {
	if c.holder == nil {
		return
	}
	if state != 0 && !c.pin.owned {
		if !c.owner.Pin(false) {
			_ = c.owner.Pin(true) // it is there all the same, until the client has gone
			if f, ok := c.holder.(Follower); ok {
				f.TooManyPinned()
			}
		}
		c.pin.owned = true
		c.pin.since = time.Now()
		c.pin.by = c.cause()
		c.counts.Pins++
	}
	c.pin.why = c.pin.why&^PinState | state
	c.unpinLocked(0)
}

// cause names the last statement of a client.
func (c *Conn) cause() string {
	if c.statement == nil {
		return ""
	}
	return c.statement.String()
}
