package router

import (
	"strings"
	"sync/atomic"
	"time"
)

// Class says which servers may run a statement.
type Class uint8

const (
	// ClassPrimary is for whatever is not proved to be a read.
	ClassPrimary Class = iota
	// ClassRead is a statement that is proved to write nothing, lock nothing
	// and touch no session state: any server may run it.
	ClassRead
	// ClassAny needs no particular server: an empty query, or a question that
	// the proxy answers itself.
	ClassAny
)

// String returns the word that the console shows.
func (c Class) String() string {
	switch c {
	case ClassRead:
		return "read"
	case ClassAny:
		return "any"
	default:
		return "primary"
	}
}

// Effect is a set of bits: what a statement does, when it succeeds, to the
// session or the database. A string of several statements has the union.
type Effect uint32

const (
	// EffectBegin opens a transaction block: BEGIN, START TRANSACTION,
	// COMMIT AND CHAIN, ROLLBACK AND CHAIN.
	EffectBegin Effect = 1 << iota
	// EffectBeginReadOnly comes together with EffectBegin when the block is
	// declared READ ONLY.
	EffectBeginReadOnly
	// EffectEnd ends the transaction block: COMMIT, END, ROLLBACK, ABORT and
	// PREPARE TRANSACTION.
	EffectEnd
	// EffectSet changes a setting beyond the current transaction: SET, RESET,
	// SET SESSION CHARACTERISTICS, set_config with is_local not plainly true.
	EffectSet
	// EffectPrepare is the SQL statement PREPARE.
	EffectPrepare
	// EffectDeallocate is DEALLOCATE of one name.
	EffectDeallocate
	// EffectDeallocateAll is DEALLOCATE ALL.
	EffectDeallocateAll
	// EffectDiscardAll is DISCARD ALL. The smaller DISCARDs have no bit: they
	// only give back what other bits have announced.
	EffectDiscardAll
	// EffectListen changes what the session listens to: LISTEN, UNLISTEN.
	EffectListen
	// EffectTemp makes a temporary object.
	EffectTemp
	// EffectAdvisoryLock takes, or may take, an advisory lock that outlives
	// the transaction.
	EffectAdvisoryLock
	// EffectHoldCursor is DECLARE ... WITH HOLD.
	EffectHoldCursor
	// EffectCopy is COPY in any direction.
	EffectCopy
	// EffectDDL changes the catalog.
	EffectDDL
	// EffectWrite writes, or may write, what another session could read
	// later: a session that must see its own writes counts from its end.
	EffectWrite
	// EffectOther leaves the session in a state that nobody can tell: DO,
	// CALL, LOAD, or a text that could not be parsed.
	EffectOther
	// EffectCancel and EffectTerminate call pg_cancel_backend and
	// pg_terminate_backend.
	EffectCancel
	EffectTerminate
	// EffectChannels asks what the session listens to: pg_listening_channels.
	EffectChannels
	// EffectMulti marks a string of several statements.
	EffectMulti
	// EffectGiveBack may take away what EffectListen, EffectTemp,
	// EffectAdvisoryLock, EffectHoldCursor or EffectPrepare have left.
	EffectGiveBack
	// EffectSequences asks for what nextval has left in the session: currval,
	// lastval.
	EffectSequences
)

var effectNames = [...]string{
	"begin", "begin_read_only", "end", "set", "prepare", "deallocate",
	"deallocate_all", "discard_all", "listen", "temp", "advisory_lock",
	"hold_cursor", "copy", "ddl", "write", "other", "cancel",
	"terminate", "channels", "multi", "give_back", "sequences",
}

// Has reports whether every bit of want is set.
func (e Effect) Has(want Effect) bool { return e&want == want }

// Any reports whether at least one bit of want is set.
func (e Effect) Any(want Effect) bool { return e&want != 0 }

// String lists the bits by name, joined by "|"; "" for none.
func (e Effect) String() string {
	var b strings.Builder
	for i, name := range effectNames {
		if e&(1<<i) == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('|')
		}
		b.WriteString(name)
	}
	return b.String()
}

// Reason is a short text that an operator understands: why a statement has
// its class, or why a server was chosen. It names functions, relations and
// key words, and never holds a literal.
type Reason string

// Plan is what the router knows about one statement text. It is shared by
// everybody who sends the same shape: nobody may change it or its slices. It is
// never copied, for what Refuse notes.
type Plan struct {
	// Class says where it may run, Reason why.
	Class  Class
	Reason Reason
	// Effects is what it does when it succeeds.
	Effects Effect
	// Tag is the first part of its CommandComplete ("SELECT", "CREATE TABLE");
	// "" when there is no statement, several, or it is not known.
	Tag string
	// Vars is set for a single SET or RESET statement of plain settings.
	Vars []Var
	// Settings are the names, in lower case, of what EffectSet may change, as
	// far as the text says them. SettingParams are the numbers of the parameters
	// ($1 is 1) whose values are further names, and SettingsHidden says that
	// there may be names that only the server knows.
	Settings       []string
	SettingParams  []int
	SettingsHidden bool
	// Listens is set for a text of LISTEN and UNLISTEN statements only: those
	// statements, in order.
	Listens []Listen
	// Proxy is set for a single SHOW, SET or RESET of pgproxy.*: the proxy
	// answers it and no server sees it.
	Proxy *Command

	// Unread says that the text could not be read: most likely it is no SQL.
	Unread bool

	// Target is the word of a leading hint, as in
	// /* pgproxy: target=replica */: "primary", "replica" or a group's name,
	// in lower case; "" for none.
	Target string
	// Explain is set by the hint explain: the client wants to hear where the
	// statement goes.
	Explain bool
	// Bad is set for what the proxy refuses: no server sees it.
	Bad *Refusal
	// Block is set for BEGIN and START TRANSACTION.
	Block *Block
	// Clock says that a SELECT may show when its transaction began.
	Clock bool
	// Undoable says that a rollback undoes all that the text of a single statement
	// says: it reads, writes and locks rows, and calls only functions known as pure.
	Undoable bool

	// Use says what it does with prepared statements by name, and Statement with
	// which: PREPARE, EXECUTE and DEALLOCATE are also the proxy's business.
	Use       PreparedUse
	Statement string
	// Inner is, for PREPARE, the plan of what is prepared; for EXECUTE that of its
	// arguments: it is a read if they are proved harmless.
	Inner *Plan

	// open is what only a catalog can decide; nil if there is nothing. draft is
	// the plan by the text alone that this one was proved from, or nil.
	open  *open
	draft *Plan

	shape   string // "" if it has none, or is not remembered
	memos   atomic.Pointer[ruleMemo]
	refused atomic.Pointer[string]
	paces   [2]Pace // of a draft: on primaries and on replicas
}

// PreparedUse is what a statement does with prepared statements by name.
type PreparedUse uint8

const (
	PreparedNone PreparedUse = iota
	PreparedMake             // PREPARE
	PreparedRun              // EXECUTE
	PreparedDrop             // DEALLOCATE of one name
	PreparedRead             // uses one in another way: EXPLAIN EXECUTE, CREATE TABLE AS EXECUTE
	PreparedAll              // may use any: pg_prepared_statements, or one of several statements that uses one
)

// Refuse notes that a standby could not run the statement, and what it said. From
// now on it goes to the primary. first says that nobody has noted it before. It is
// remembered for as long as the plan is.
func (p *Plan) Refuse(said string) (first bool) { return p.refused.CompareAndSwap(nil, &said) }

// Refused returns what a standby said that could not run the statement; "" if none
// has.
func (p *Plan) Refused() string {
	if said := p.refused.Load(); said != nil {
		return *said
	}
	return ""
}

// String tells the statement by its shape, without a literal; by the reason where
// no shape is known.
func (p *Plan) String() string {
	if p.draft != nil {
		return p.draft.String()
	}
	if p.shape == "" {
		return string(p.Reason)
	}
	return bounded(display(p.shape))
}

// Display writes a statement for people, without its literals.
func Display(sql []byte) string {
	const most = 2 << 10
	return bounded(display(" " + string(sql[:min(len(sql), most)])))
}

// bounded cuts a text that is to stand in one line.
func bounded(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + " ..."
	}
	return s
}

// Refusal is what a client is told that asks the proxy for what it cannot do.
type Refusal struct{ Code, Message string }

// Block is what a BEGIN says of its transaction block.
type Block struct {
	Isolation string // in lower case; "" is what the session has
	Access    Access
}

// Access is the access mode of a transaction block.
type Access uint8

// The access modes. AccessDefault is what the session has.
const (
	AccessDefault Access = iota
	AccessReadOnly
	AccessReadWrite
)

// now returns class and reason with what a standby has refused.
func (p *Plan) now() (Class, Reason) {
	if said := p.Refused(); said != "" {
		return ClassPrimary, "refused by a standby: " + clean(said)
	}
	return p.Class, p.Reason
}

// Draft returns the plan by the text alone, which is what may be kept for other
// sessions: it holds in every database.
func (p *Plan) Draft() *Plan {
	if p.draft != nil {
		return p.draft
	}
	return p
}

// proved returns a plan to be made of p by a proof.
func (p *Plan) proved() *Plan {
	return &Plan{
		Class: p.Class, Reason: p.Reason, Effects: p.Effects, Tag: p.Tag, Vars: p.Vars, Proxy: p.Proxy,
		Target: p.Target, Explain: p.Explain, Bad: p.Bad, Block: p.Block, Clock: p.Clock, Undoable: p.Undoable,
		Use: p.Use, Statement: p.Statement, Inner: p.Inner, Listens: p.Listens, draft: p,
		Settings: p.Settings, SettingParams: p.SettingParams, SettingsHidden: p.SettingsHidden, Unread: p.Unread,
	}
}

// Var is one setting changed by a SET or RESET statement.
type Var struct {
	// Name is the setting in lower case. The statements with a grammar of
	// their own have their setting's name: "timezone", "client_encoding",
	// "role", "session_authorization". "" together with All.
	Name string
	// Value is in the form that set_config takes: lists are joined by ", ",
	// with each name quoted where the setting wants it so (search_path).
	// "" with Reset.
	Value string
	// Reset is RESET, or SET ... TO DEFAULT.
	Reset bool
	// Local is SET LOCAL: gone at the end of the transaction.
	Local bool
	// All is RESET ALL.
	All bool
}

// Listen is one LISTEN or UNLISTEN statement.
type Listen struct {
	// Channel is the name as the server has it: folded unless quoted, cut to
	// 63 bytes. "" is UNLISTEN *.
	Channel string
	Stop    bool // UNLISTEN
}

// Command is a statement that the proxy itself answers.
type Command struct {
	// Name is what stands after "pgproxy.", in lower case.
	Name string
	// Value is what SET gives; "" for SHOW and Reset.
	Value string
	// Show is SHOW; otherwise it is SET, or RESET (or SET ... TO DEFAULT)
	// when Reset is true. Local is SET LOCAL.
	Show, Reset, Local bool
}

// Options bounds a Router. A field at or below 0 has the default.
type Options struct {
	// MaxShapes is the number of shapes that are remembered; default 10,000.
	MaxShapes int
	// MaxShapeBytes bounds the memory that they take, in bytes; default 16 MiB.
	MaxShapeBytes int
	// MaxParse is the longest text, in bytes, that is parsed; default 1 MiB.
	MaxParse int
}

// ShapeStat is one remembered shape.
type ShapeStat struct {
	Shape   string // the statement with its literals replaced by "?"
	Hash    string // 16 hexadecimal digits, other ones in each process
	Class   Class
	Reason  Reason
	Hits    uint64      // times that it was found after it was made
	Stamped time.Time   // when it was parsed
	Proofs  []ProofStat // what the catalogs of databases have made of it
}

// ProofStat is what a shape is in one database, under one search_path.
type ProofStat struct {
	Database string // entry of [databases]
	Class    Class
	Reason   Reason
	Frees    string // declarations that would let it go to replicas, joined by "; "; "" if none would
	Hits     uint64
}

// Stats are the counters of a Router since it was made.
type Stats struct {
	Hits      uint64 // plans found
	Misses    uint64 // plans made and remembered
	Uncached  uint64 // plans made that may not be remembered
	Evictions uint64 // shapes forgotten for want of room
	Entries   int    // shapes remembered now
	Bytes     int64  // memory that they take now, in bytes
	Panics    uint64 // analyses that failed; 0 unless something is wrong here
}
