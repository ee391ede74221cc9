package proxy_test

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// modelSession is a session of PostgreSQL's in small. It knows a few statements by
// their texts:
//
//	SELECT 'x'               a row with the text
//	SELECT 'x' FROM three    three of them
//	SELECT 'x'::int          an error when it is executed
//	SELECT slow('x')         a wait for a cancel request
//	SELEC 'x'                an error when it is parsed
//	INSERT, COPY, BEGIN, COMMIT, ROLLBACK
//
// The same model is the server behind the proxy and, without anything between them,
// what says how a client is to be answered.
type modelSession struct {
	status     wire.TxStatus
	skipping   bool       // up to Sync
	copying    *modelCopy // FROM STDIN; nil: none
	statements map[string]string
	portals    map[string]*modelPortal
	slow       func(sql string) // called for a statement that waits
	out        []byte
	n          int // messages in out, ever
}

type modelCopy struct{ query bool }

type modelPortal struct {
	sql  string
	at   int // rows that were given
	done bool
}

func newModelSession() *modelSession {
	return &modelSession{status: wire.TxIdle, statements: make(map[string]string), portals: make(map[string]*modelPortal), slow: func(string) {}}
}

// resting reports whether another client could have the session.
func (s *modelSession) resting() bool {
	return s.status == wire.TxIdle && !s.skipping && s.copying == nil
}

func (s *modelSession) say(p []byte) {
	s.out = append(s.out, p...)
	s.n++
}

func (s *modelSession) ready() {
	if s.status == wire.TxIdle {
		clear(s.portals)
	}
	s.say(wire.AppendReadyForQuery(nil, s.status))
}

func (s *modelSession) fail(e *wire.Error) {
	s.say(e.Append(nil))
	switch s.status {
	case wire.TxInside:
		s.status = wire.TxFailed
	case wire.TxIdle:
		clear(s.portals)
	}
}

// read does what the server does with a message. flush says that the answer goes out.
func (s *modelSession) read(m pgtest.Msg) (flush bool) {
	if s.copying != nil {
		return s.readCopy(m)
	}
	switch m.Type {
	case wire.CopyData, wire.CopyDone, wire.CopyFail:
		return false
	case wire.Sync:
		s.skipping = false
		s.ready()
		return true
	case wire.Flush:
		return true
	}
	if s.skipping {
		return false
	}
	switch m.Type {
	case wire.Query:
		sql, _, _ := wire.String(m.Body)
		delete(s.statements, "")
		p := &modelPortal{sql: string(sql)}
		e := s.parse(p.sql)
		if e == nil && returnsRows(p.sql) {
			s.say(wire.AppendRowDescription(nil, modelColumns))
		}
		if e == nil {
			delete(s.portals, "")
			e = s.execute(p, 0, true)
		}
		if e != nil {
			s.fail(e)
		}
		if s.copying == nil {
			s.ready()
		}
		return true
	case wire.FunctionCall:
		if s.status == wire.TxFailed {
			s.fail(modelAborted)
		} else {
			s.say(pgtest.Message(wire.FunctionCallResponse, []byte{0, 0, 0, 1, '7'}))
		}
		s.ready()
		return true
	}
	if e := s.extended(m); e != nil {
		s.fail(e)
		s.skipping = true
	}
	return s.copying != nil
}

var (
	modelColumns = []wire.Column{{Name: "answer", OID: wire.OIDText}}
	modelAborted = wire.Errorf("25P02", "current transaction is aborted")
)

func returnsRows(sql string) bool { return strings.HasPrefix(sql, "SELECT") }

// parse says what is wrong with a text.
func (s *modelSession) parse(sql string) *wire.Error {
	switch {
	case strings.HasPrefix(sql, "SELEC "):
		return wire.Errorf(wire.CodeSyntaxError, "syntax error")
	case s.status == wire.TxFailed && sql != "" && !strings.HasPrefix(sql, "COMMIT") && !strings.HasPrefix(sql, "ROLLBACK"):
		return modelAborted
	}
	return nil
}

func (s *modelSession) extended(m pgtest.Msg) *wire.Error {
	switch m.Type {
	case wire.Parse:
		p, _ := wire.ReadParse(m.Body)
		_, there := s.statements[string(p.Name)]
		there = there && len(p.Name) > 0
		if there && s.status == wire.TxFailed {
			return modelAborted // PostgreSQL looks at the name last
		}
		if e := s.parse(string(p.Query)); e != nil {
			return e
		}
		if there {
			return wire.Errorf(wire.CodeDuplicatePrepared, "prepared statement %q already exists", p.Name)
		}
		s.statements[string(p.Name)] = string(p.Query)
		s.say(wire.AppendEmpty(nil, wire.ParseComplete))
	case wire.Bind:
		portal, statement, _, _ := wire.ReadBindNames(m.Body)
		sql, there := s.statements[string(statement)]
		if !there {
			return wire.Errorf(wire.CodeUndefinedStatement, "prepared statement %q does not exist", statement)
		}
		if e := s.parse(sql); e != nil {
			return e
		}
		if s.portals[string(portal)] != nil && len(portal) > 0 {
			return wire.Errorf("42P03", "cursor %q already exists", portal)
		}
		s.portals[string(portal)] = &modelPortal{sql: sql}
		s.say(wire.AppendEmpty(nil, wire.BindComplete))
	case wire.Describe:
		kind, name, _ := wire.ReadTarget(m.Body)
		sql, there := s.statements[string(name)]
		if p := s.portals[string(name)]; kind == 'P' {
			if p == nil {
				return wire.Errorf("34000", "portal %q does not exist", name)
			}
			sql = p.sql
		} else if !there {
			return wire.Errorf(wire.CodeUndefinedStatement, "prepared statement %q does not exist", name)
		}
		if e := s.parse(sql); e != nil {
			return e // PostgreSQL describes a statement without rows
		}
		if kind == 'S' {
			s.say(wire.AppendParameterDescription(nil))
		}
		if returnsRows(sql) {
			s.say(wire.AppendRowDescription(nil, modelColumns))
		} else {
			s.say(wire.AppendEmpty(nil, wire.NoData))
		}
	case wire.Close:
		kind, name, _ := wire.ReadTarget(m.Body)
		if kind == 'S' {
			delete(s.statements, string(name))
		} else {
			delete(s.portals, string(name))
		}
		s.say(wire.AppendEmpty(nil, wire.CloseComplete))
	case wire.Execute:
		name, rest, _ := wire.String(m.Body)
		p := s.portals[string(name)]
		if p == nil {
			return wire.Errorf("34000", "portal %q does not exist", name)
		}
		return s.execute(p, int(rest[3]), false)
	default:
		return wire.Errorf(wire.CodeProtocolViolation, "invalid frontend message type %q", m.Type)
	}
	return nil
}

// execute runs a portal for at most so many rows; 0 is all.
func (s *modelSession) execute(p *modelPortal, most int, query bool) *wire.Error {
	if e := s.parse(p.sql); e != nil {
		return e
	}
	if p.done && p.sql != "" && !returnsRows(p.sql) {
		return wire.Errorf(wire.CodeObjectNotInState, "portal cannot be run")
	}
	word, _, _ := strings.Cut(p.sql, " ")
	switch {
	case p.sql == "":
		s.say(wire.AppendEmpty(nil, wire.EmptyQueryResponse))
		return nil
	case strings.Contains(p.sql, "::int"):
		return wire.Errorf("22P02", "invalid input syntax for type integer")
	case strings.Contains(p.sql, "slow("):
		s.slow(p.sql)
		return wire.Errorf(wire.CodeQueryCanceled, "canceling statement due to user request")
	case strings.HasPrefix(p.sql, "SET"), strings.HasPrefix(p.sql, "RESET"):
		return wire.Errorf(wire.CodeUndefinedObject, "unrecognized configuration parameter") // the proxy's refusals
	case word == "COPY":
		p.done = true
		s.say(pgtest.Message(wire.CopyInResponse, []byte{0, 0, 0}))
		s.copying = &modelCopy{query: query}
		return nil
	case word == "SELECT":
		s.rows(p, most)
		return nil
	case word == "BEGIN":
		if s.status != wire.TxIdle {
			s.warn("25001")
		}
		s.status = wire.TxInside
	case word == "COMMIT", word == "ROLLBACK":
		switch s.status {
		case wire.TxIdle:
			s.warn("25P01")
		case wire.TxFailed:
			word = "ROLLBACK"
		}
		s.status = wire.TxIdle
		clear(s.portals)
	case word == "INSERT":
		word = "INSERT 0 1"
	case p.sql == "DISCARD ALL":
		word = p.sql
		clear(s.statements)
	}
	p.done = true
	s.say(wire.AppendCommandComplete(nil, word))
	return nil
}

func (s *modelSession) warn(code string) {
	e := wire.Errorf(code, "warning")
	e.Severity = "WARNING"
	s.say(e.AppendNotice(nil))
}

func (s *modelSession) rows(p *modelPortal, most int) {
	there := 1
	if strings.HasSuffix(p.sql, "three") {
		there = 3
	} else if strings.HasPrefix(p.sql, "SELECT 'set'") {
		there = 0 // a question of the proxy's: nothing was left behind
	}
	n := 0
	for ; p.at < there && (most == 0 || n < most); n++ {
		p.at++
		_, text, _ := strings.Cut(p.sql, "'")
		text, _, _ = strings.Cut(text, "'")
		s.say(wire.AppendDataRow(nil, []byte(text)))
	}
	if most > 0 && n == most {
		s.say(wire.AppendEmpty(nil, wire.PortalSuspended))
		return
	}
	s.say(wire.AppendCommandComplete(nil, "SELECT "+strconv.Itoa(n)))
}

func (s *modelSession) readCopy(m pgtest.Msg) (flush bool) {
	var e *wire.Error
	switch m.Type {
	case wire.CopyData:
		if !bytes.HasPrefix(m.Body, []byte("bad")) {
			return false
		}
		e = wire.Errorf("22P02", "a bad row")
	case wire.Flush, wire.Sync:
		return false
	case wire.CopyDone:
	case wire.CopyFail:
		e = wire.Errorf(wire.CodeQueryCanceled, "COPY from stdin failed")
	default:
		e = wire.Errorf(wire.CodeProtocolViolation, "unexpected message type %q during COPY from stdin", m.Type)
	}
	c := s.copying
	s.copying = nil
	if e != nil {
		s.fail(e)
		s.skipping = !c.query
	} else {
		s.say(wire.AppendCommandComplete(nil, "COPY 1"))
	}
	if c.query {
		s.ready()
	}
	return c.query || e != nil
}

// modelTag is a text of one client's; ownerOf finds in a statement whose it is.
func modelTag(client, n int) string { return fmt.Sprintf("<c%d.%d>", client, n) }

func ownerOf(sql string) string {
	_, tag, _ := strings.Cut(sql, "<c")
	owner, _, _ := strings.Cut(tag, ".")
	return owner
}
