package backend

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"

	"pgproxy/netio"
	"pgproxy/wire"
)

// headOfError is how much of an ErrorResponse must be in hand before it is
// relayed: severity and SQLSTATE come first.
const headOfError = 2 << 10

// unasked are the types of message that a server may send at any time.
var unasked = []byte{wire.NoticeResponse, wire.NotificationResponse, wire.ParameterStatus, wire.ErrorResponse}

// loop is the connection's goroutine. It ends when the server does, or when the
// connection is closed.
func (c *Conn) loop() {
	defer close(c.done)
	err := c.io.Loop(netio.Handler(c.onReply))
	c.fail(fmt.Errorf("server %s: %w", c.Addr, err))
}

// inHandLocked returns how many bytes of a message's body must be there before
// anything is decided.
func (c *Conn) inHandLocked(h wire.Header) int {
	switch h.Type {
	case wire.RowDescription:
		if !c.q.empty() && c.q.at(0).Told != nil && h.Body <= maxTold {
			return h.Body
		}
	case wire.ReadyForQuery, wire.ParameterStatus:
		return h.Body
	case wire.CommandComplete:
		return min(h.Body, 64)
	case wire.ErrorResponse:
		return min(h.Body, headOfError)
	case wire.NoticeResponse:
		if c.try.on || !c.q.empty() && c.q.at(0).Signal != 0 {
			return min(h.Body, headOfError)
		}
	case wire.DataRow:
		if c.answer != nil || !c.q.empty() && c.q.at(0).Note != nil {
			return min(h.Body, maxAnswer)
		}
	}
	return 0
}

// scan is what onReply gathers under the mutex, to be acted on without it.
type scan struct {
	sink    Sink // for whom c.out is
	ready   bool // a ReadyForQuery was seen: the connection may have come free
	over    bool // the message at hand is the last one for the holder
	now     int64
	signals []signalled
}

// signalled is a process that a client's statement has named in vain.
type signalled struct {
	sink   Sink
	signal Signal
	pid    uint32
}

// earlier is a reply to another client than the last one of a scan.
type earlier struct {
	sink   Sink
	p      []byte
	leaves bool // its statement is complete: it is not told of the connection's end
}

// onReply is shown what the server has sent. It decides about each message under
// the mutex, then writes all that is to be relayed at once, then releases the
// connection if it has come free. From the decision to the end of the write
// c.relaying is set: an empty queue does not mean yet that all is answered.
func (c *Conn) onReply(p []byte) (used int, err error) {
	var s scan
	c.out.Reset()
	c.spill = c.spill[:0]
	c.mu.Lock()
	clear(c.earlier)
	c.earlier, c.writeTo = c.earlier[:0], nil
	if c.rest > 0 && c.forward {
		s.sink = c.relayTo // of a message that began in another call
	}
	c.resumeLocked(&s)
	for used < len(p) && err == nil {
		if c.rest > 0 {
			n := min(c.rest, len(p)-used)
			if c.forward {
				c.out.Relay(p[used : used+n])
			}
			c.rest -= n
			used += n
			if c.rest == 0 {
				err = c.last
				if s.over {
					s.over = false
					c.advanceLocked(&s)
				}
			}
			continue
		}
		q := p[used:]
		if len(q) < wire.HeaderLen {
			if c.q.empty() && c.q.doubt == 0 && bytes.IndexByte(unasked, q[0]) < 0 {
				err = fmt.Errorf("%w: %q with nothing owed", errOutOfSync, q[0])
			}
			break
		}
		h, herr := wire.ReadHeader(q, c.limits.MaxMessage)
		if herr != nil {
			err = fmt.Errorf("message %q: %w", q[0], herr)
			break
		}
		if len(q) < wire.HeaderLen+c.inHandLocked(h) {
			break
		}
		body := q[wire.HeaderLen:min(len(q), h.Size())]
		if c.forward, err = c.message(h, body, &s); err != nil {
			break
		}
		c.rest = h.Size()
	}
	c.keepBackLocked()
	c.relayTo = nil
	if c.rest > 0 && c.forward {
		c.relayTo = s.sink
	}
	relay := s.sink != nil && c.out.Len() > 0
	c.relaying = relay || len(c.earlier) > 0
	to := toNobody
	if !c.relaying {
		if s.ready {
			to = c.detachLocked(s.now)
		}
		c.movedLocked()
	} else if relay {
		c.writeTo = s.sink
		c.counts.Sent += uint64(c.out.Len())
	}
	c.countSeatsLocked()
	relaying := c.relaying
	superuser := len(s.signals) > 0 && c.params["is_superuser"] == "on"
	c.mu.Unlock()
	for _, x := range s.signals {
		x.sink.Signalled(x.signal, x.pid, superuser)
	}
	if relaying {
		to = c.relay(&s, relay)
	}
	if err == nil { // after an error fail tells the owner
		c.handBack(to)
		if s.ready && c.Seats() > 0 {
			c.owner.Room(c)
		}
	}
	return used, err
}

// relay writes what a scan has gathered: without the mutex, since a client may
// not be reading. It says whether the connection has come free.
func (c *Conn) relay(s *scan, last bool) (to whereTo) {
	for _, e := range c.earlier {
		c.relayEarlier(e)
	}
	if last {
		// The right to write to the client comes before the detachment: whoever
		// serves that client next finds its bytes behind ours.
		s.sink.Lock()
		c.mu.Lock()
		// A question waits for the end of the write: its own must not be held up.
		if s.ready && c.ask == 0 && c.pin.why == 0 && !c.auditDueLocked(s.now) {
			c.relaying = false
			to = c.detachLocked(s.now)
			c.relaying = true
		}
		alive := c.lost == nil || c.leavesLocked(s.sink) // who is leaving is not told of the end
		c.mu.Unlock()
		if alive {
			_ = s.sink.Reply(c.out.Bytes()) // a client that is gone is its own goroutine's business
		}
		c.out.Reset()
		defer s.sink.Unlock() // c.relaying tells whoever has the right whether something is still to be written
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.relaying, c.share.behind = false, nil
	c.leftLocked(s.sink)
	if to == toNobody {
		to = c.detachLocked(0) // who came while we wrote has left it to us
	}
	c.movedLocked()
	return to
}

// relayEarlier writes what goes out before the last of a scan, to another client. It
// waits for nobody.
func (c *Conn) relayEarlier(e earlier) {
	e.sink.Lock()
	if e.leaves || c.Alive() {
		if rest := e.sink.TryReply(e.p); len(rest) > 0 {
			c.finishLater(e.sink, rest)
			return
		}
	}
	e.sink.Unlock()
	c.mu.Lock()
	c.leftLocked(e.sink)
	c.wakeMovedLocked() // the next write may take long
	c.mu.Unlock()
}

// movedLocked tells those who wait for the queue.
func (c *Conn) movedLocked() {
	c.wakeMovedLocked()
	if !c.owingLocked() {
		c.wakeQuietLocked()
	}
}

func (c *Conn) wakeMovedLocked() {
	if c.moved != nil {
		close(c.moved)
		c.moved = nil
	}
}

// to makes sink the one that c.out is for.
func (c *Conn) to(sink Sink, s *scan) {
	if s.sink == sink {
		return
	}
	if s.sink != nil && c.out.Len() > 0 {
		p := c.out.Bytes()
		if !c.out.Raw() {
			n := len(c.spill)
			c.spill = append(c.spill, p...)
			p = c.spill[n:]
		}
		c.earlier = append(c.earlier, earlier{s.sink, p, c.leavesLocked(s.sink)})
		c.out.Reset()
	}
	s.sink = sink
}

// message decides about one message: it is relayed to s.sink if forward is true.
func (c *Conn) message(h wire.Header, body []byte, s *scan) (forward bool, err error) {
	for o, ok := c.q.forged(); ok; o, ok = c.q.forged() {
		c.to(o.Sink, s)
		p := c.out.Made()
		switch o.Made {
		case wire.CommandComplete:
			*p = wire.AppendCommandComplete(*p, o.Tags.next())
		case wire.NoticeResponse:
			*p = o.Err.AppendNotice(*p)
		default:
			*p = wire.AppendEmpty(*p, o.Made)
		}
	}
	switch h.Type {
	case wire.NoticeResponse, wire.NotificationResponse, wire.ParameterStatus:
		return c.async(h, body, s)
	case wire.ErrorResponse:
		e := wire.ReadError(body)
		if e.Fatal() {
			c.errors++
			return c.lastWords(e, s), nil
		}
		o := c.q.front()
		v, err := c.q.reply(h.Type, body)
		if err != nil {
			return false, err
		}
		if o.Answer && c.answer != nil {
			c.answer.failed = true
			return false, nil
		}
		c.errors++
		if o.Gone {
			return false, nil
		}
		if o.Sets && c.clientWaitsLocked() {
			// What is behind it runs, if it has not already, without what the client has
			// set: it must not be answered.
			return false, fmt.Errorf("%w: %w", errUnsure, e)
		}
		if o.Note != nil {
			o.Note.Store(&Noted{Code: e.Code})
		}
		c.refutedLocked(e, o)
		if v.Sink != nil {
			c.to(v.Sink, s)
		}
		if v.Forward && c.holdLocked(e, o, h, body) {
			return false, nil
		}
		instead := c.try.instead
		if !c.try.on || c.try.begun {
			instead = nil
		}
		c.try.over()
		if v.Failed {
			c.unsure = c.unsure || !v.Forward && c.holder != nil && o.Stmt == nil
			if c.failed == nil {
				c.failed = e
			}
		}
		if v.Sink == nil {
			v.Sink = c.holder
		}
		if v.Sink == nil {
			return false, nil
		}
		c.to(v.Sink, s)
		if v.Forward && instead != nil {
			*c.out.Made() = append(*c.out.Made(), instead...)
			return false, nil
		}
		if v.Error != nil && v.Code == e.Code {
			*c.out.Made() = v.Error.Append(*c.out.Made())
			return false, nil
		}
		return v.Forward || v.Error != nil, nil
	case wire.DataRow:
		if c.answer != nil && !c.q.empty() && c.q.at(0).Answer {
			c.answer.row(h, body)
		}
		if !c.q.empty() && c.q.at(0).Note != nil {
			noted(c.q.at(0).Note, body)
		}
	case wire.CommandComplete:
		c.complete(body)
		if !c.q.empty() && c.q.at(0).Tags != nil {
			return c.retag(h, body, s)
		}
	case wire.ReadyForQuery:
		return c.ready(h, body, s)
	case wire.RowDescription, wire.NoData:
		if !c.q.empty() && c.q.at(0).Told != nil && len(body) == h.Body {
			o := c.q.at(0)
			rows := rowType(body)
			o.Told.Store(rows)
			if held, ok := c.prep.used[o.Stmt]; ok {
				held.rows = rows
				c.prep.used[o.Stmt] = held
			}
		}
	case wire.ParseComplete:
		if !c.q.empty() && c.q.at(0).Stmt != nil {
			c.prep.settle(c.q.at(0).Stmt, true)
		}
	case wire.CloseComplete:
		if o := c.q.front(); o.Kind == Close && o.Stmt != nil && o.Do == Swallow {
			c.prep.closed(o.Stmt, false)
		}
	}
	v, err := c.q.reply(h.Type, body)
	if err != nil || !v.Forward || v.Sink == nil {
		return false, err
	}
	c.try.take(h.Type)
	c.to(v.Sink, s)
	return true, nil
}

// retag handles a CommandComplete that may have another tag for the client.
func (c *Conn) retag(h wire.Header, body []byte, s *scan) (forward bool, err error) {
	tag := c.q.at(0).Tags.next()
	v, err := c.q.reply(h.Type, body)
	if err != nil || !v.Forward || v.Sink == nil {
		return false, err
	}
	c.to(v.Sink, s)
	if tag == "" {
		return true, nil
	}
	p := c.out.Made()
	*p = wire.AppendCommandComplete(*p, tag)
	return false, nil
}

// lastWords handles a FATAL error, which may come at any time and is the last
// message: the client hears it whatever is owed.
func (c *Conn) lastWords(e *wire.Error, s *scan) (forward bool) {
	c.last = e
	c.owner.Dying()
	// Who has said goodbye reads nothing any more: what came later is not executed.
	c.early = c.try.on && c.io.HeardFirst()
	sink := c.holder
	c.spare = sink != nil && c.spareLocked()
	if sink == nil || c.fresh || c.adoptingLocked() || c.spare || c.survivesLocked() || c.try.failed != nil && !c.carriesLocked() {
		return false
	}
	c.fatal, c.fatalTo = true, sink
	c.try.over() // nothing of it is held back
	c.to(sink, s)
	return true
}

// async handles the messages that may come at any time.
func (c *Conn) async(h wire.Header, body []byte, s *scan) (forward bool, err error) {
	sink := c.holder
	if !c.q.empty() {
		o := c.q.at(0)
		if o.Do == Swallow && h.Type != wire.NotificationResponse {
			sink = nil
		} else if o.Sink != nil {
			sink = o.Sink
		}
	}
	if h.Type == wire.ParameterStatus {
		name, value, err := wire.ReadParameterStatus(body)
		if err != nil {
			return false, err
		}
		n, v := string(name), string(value)
		c.params[n] = v
		if n == inHotStandby {
			c.standby.Store(v == "on")
		}
		if sink != nil && !c.q.empty() { // else no statement of its has done that
			c.reported(sink, n, v)
		}
	}
	if h.Type == wire.NotificationResponse && c.pin.why == 0 {
		// Somebody has made this connection listen unseen, and may be gone.
		c.dirty = true
		return false, nil
	}
	if sink == nil {
		return false, nil
	}
	if h.Type == wire.NoticeResponse && !c.q.empty() && c.q.at(0).Signal != 0 {
		if pid, ok := noProcess(body); ok {
			s.signals = append(s.signals, signalled{sink, c.q.at(0).Signal, pid})
		}
	}
	if h.Type == wire.NoticeResponse && len(body) == h.Body && announcesEnd(body) {
		c.owner.Dying() // and the trial goes on: with what there is of the answer this is held back
	} else {
		c.try.over()
	}
	c.to(sink, s)
	return true, nil
}

// noProcess reads the warning of pg_cancel_backend and pg_terminate_backend that
// there is no process of this number. Its text may be in any language, the name
// of the routine in the server's source is not.
func noProcess(body []byte) (pid uint32, ok bool) {
	e := wire.ReadError(body)
	if e.Routine != "pg_signal_backend" {
		return 0, false
	}
	digits := strings.TrimLeftFunc(e.Message, func(r rune) bool { return r < '0' || r > '9' })
	end := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(digits)
	}
	n, err := strconv.ParseUint(digits[:end], 10, 32)
	return uint32(n), err == nil
}

// announcesEnd reports whether a notice says that the server is about to end the
// connection: where it is stopped at once, or another of its processes has crashed,
// nothing else does.
func announcesEnd(body []byte) bool {
	e := wire.ReadError(body)
	return e.Code == wire.CodeAdminShutdown || e.Code == wire.CodeCrashShutdown
}

// unsettable are the parameters that a server reports but no client can set, or
// not without more than the setting changing with it.
var unsettable = map[string]bool{
	"server_version": true, "server_encoding": true, "integer_datetimes": true, "is_superuser": true, "in_hot_standby": true,
}

// reported notes a parameter that the client's own statement has changed: it is
// the client's from now on, and what this connection has.
func (c *Conn) reported(sink Sink, name, value string) {
	if unsettable[name] {
		return
	}
	login := c.login[name] == value
	sink.Reported(name, value, login)
	name = strings.ToLower(name) // as settings are named
	if login {
		c.applied.Store(c.applied.Load().Without(name))
	} else {
		c.applied.Store(c.applied.Load().With(name, value))
	}
}

var (
	tagDiscardAll    = []byte("DISCARD ALL\x00")
	tagDeallocateAll = []byte("DEALLOCATE ALL\x00")
	tagDeallocate    = []byte("DEALLOCATE\x00")
	tagPrepare       = []byte("PREPARE\x00")
	tagSequences     = []byte("DISCARD SEQUENCES\x00")
)

// complete looks for the commands that change what the connection holds.
func (c *Conn) complete(body []byte) {
	if len(body) == 0 || body[0] != 'D' && body[0] != 'P' {
		return
	}
	switch {
	case bytes.Equal(body, tagSequences):
		if o := c.q.front(); o.Client != 0 {
			c.writer = o.Client
		}
		return
	case bytes.Equal(body, tagPrepare):
		if o := c.q.front(); o.Makes {
			c.prep.settle(o.Stmt, true)
		}
		return
	case bytes.Equal(body, tagDiscardAll):
		c.applied.Store(nil)
		c.unsure, c.dirty = false, c.home != nil // what connect_query has set is gone
	case bytes.Equal(body, tagDeallocateAll):
	case bytes.Equal(body, tagDeallocate):
		if o := c.q.front(); o.Drops && o.Stmt != nil {
			c.prep.forget(o.Stmt)
		} else if !o.Drops {
			c.dirty = c.dirty || len(c.prep.used) > 0 // it may have been one of ours
		}
		return
	default:
		return
	}
	c.dropped = true
	c.unnamed.Store(otherUnnamed) // the EXECUTE of it may stand in one, which lives on
	c.prep.clear()
	for i := range c.q.n { // what is prepared behind it is there again
		if o := c.q.at(i); (o.Kind == Parse || o.Makes) && o.Stmt != nil {
			c.prep.add(o.Stmt)
		}
	}
}

// ready handles ReadyForQuery.
func (c *Conn) ready(h wire.Header, body []byte, s *scan) (forward bool, err error) {
	if h.Body != 1 || !wire.TxStatus(body[0]).Valid() {
		return false, fmt.Errorf("ReadyForQuery: %w", wire.ErrMessage)
	}
	answered, gone := !c.q.empty() && c.q.at(0).Answer, !c.q.empty() && c.q.at(0).Gone
	v, err := c.q.reply(h.Type, body)
	if err != nil {
		return false, err
	}
	c.status = wire.TxStatus(body[0])
	if gone {
		c.share.gone--
	}
	if answered {
		c.answeredLocked()
	}
	if s.now == 0 {
		s.now = c.now()
	}
	if f := c.try.failed; f != nil && !v.Swallow {
		c.try.failed = nil
		v.Sink.Failed(f)
		v.Forward, v.Sink = false, nil
	} else if !v.Swallow {
		c.try.over()
	}
	if v.Sink != nil {
		c.to(v.Sink, s)
		if !v.Swallow {
			v.Sink.Answered(s.now, c.wrote)
		}
	}
	if !v.Swallow {
		c.counts.Queries++
		c.counts.QueryTime.Add(time.Duration(s.now - c.started))
		if c.status == wire.TxIdle {
			c.counts.Xacts++
			c.counts.XactTime.Add(time.Duration(s.now - c.xact))
		}
	}
	if c.pace != nil && !v.Swallow {
		c.owner.Served(c.pace.Took(time.Duration(s.now - c.started)))
		c.pace = nil
	}
	c.started = s.now
	if c.q.empty() {
		c.ends = false
	} else {
		s.over = c.endsTurnLocked(v.Swallow)
	}
	c.share.ended++
	if c.status == wire.TxIdle {
		c.xact = 0
		if !c.q.empty() {
			c.xact = s.now
		}
	}
	if v.Forward && v.Sink == nil {
		if v.Sink = c.holder; v.Sink != nil {
			c.to(v.Sink, s)
		}
	}
	s.ready = true
	return v.Forward && v.Sink != nil, nil
}

// droppedEntry is told of entries whose message the server ignores, or refuses.
func (c *Conn) droppedEntry(o Owed, refused bool) {
	switch {
	case (o.Kind == Parse || o.Makes) && o.Stmt != nil:
		if refused {
			c.prep.forget(o.Stmt)
		} else {
			c.prep.settle(o.Stmt, false)
		}
	case o.Kind == Parse || o.Kind == Query:
		c.unnamed.Store(otherUnnamed)
	case o.Kind == Close && o.Stmt != nil && o.Do == Swallow:
		c.prep.closed(o.Stmt, true)
	}
	if o.Change != 0 && o.Sink != nil {
		o.Sink.Undone(o.Change)
	}
}

// fail ends the connection: its holder and its owner are told, unless the
// connection was closed from our side.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.lost != nil {
		c.mu.Unlock()
		return
	}
	c.lost = err
	c.owner.Dying()
	holder, fatal, lost := c.holder, c.fatal, c.lostLocked(err)
	if f := c.diedLocked(); f != nil {
		holder.Failed(f)
		holder = nil
	}
	c.spare = c.spare || c.spareLocked()
	if c.fresh || c.adoptingLocked() || c.spare {
		holder = nil // it hears of it from Send or Hold, or has all that it wanted
	}
	c.holder = nil
	c.loseLocked()
	c.mu.Unlock()
	_ = c.io.Close()
	if holder != nil {
		holder.Lost(lost, fatal)
	}
	c.owner.Discard(c, err)
}

// loseLocked tells those who wait that nothing more will come.
func (c *Conn) loseLocked() {
	c.dismissLocked(CauseDied)
	c.unpinLocked(PinAll)
	c.movedLocked()
	c.wakeQuietLocked()
}
