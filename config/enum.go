package config

import (
	"fmt"
	"slices"
	"strconv"
)

// The words of each setting stand at the index of their value; the zero value is
// the default.

// AuthType says how clients prove who they are.
type AuthType uint8

// The ways to log in.
const (
	AuthSCRAM AuthType = iota // SCRAM-SHA-256
	AuthMD5                   // MD5, or SCRAM for users whose secret is one
	AuthPlain                 // cleartext password
	AuthTrust                 // the user must be known, nothing is asked
	AuthAny                   // nothing is asked; databases need a login of their own
	AuthCert                  // a client certificate whose common name is the user's
	AuthHBA                   // as the lines of auth_hba_file say
	AuthLDAP                  // a directory checks the password
	AuthPAM                   // PAM checks the password
)

var authTypes = []string{"scram-sha-256", "md5", "plain", "trust", "any", "cert", "hba", "ldap", "pam"}

// String is the word of the file.
func (v AuthType) String() string { return word(authTypes, v) }

// UnmarshalText accepts the words of the file.
func (v *AuthType) UnmarshalText(p []byte) error { return setWord(v, authTypes, p) }

// UsesSecrets reports whether logins are checked by what auth_file and auth_query
// know of a user; others decide elsewhere.
func (v AuthType) UsesSecrets() bool { return v != AuthAny && v != AuthLDAP && v != AuthPAM }

// PoolMode says when a server connection goes back to its pool.
type PoolMode uint8

// The pool modes.
const (
	PoolInherit     PoolMode = iota // in User only: as the database has it
	PoolTransaction                 // after each transaction
	PoolSession                     // when the client leaves
	PoolStatement                   // after each statement; transactions are refused
)

var poolModes = []string{"", "transaction", "session", "statement"}

// String is the word of the file, or "" for PoolInherit.
func (v PoolMode) String() string { return word(poolModes, v) }

// UnmarshalText accepts the words of the file.
func (v *PoolMode) UnmarshalText(p []byte) error { return setWord(v, poolModes, p) }

// SplitMode says which statements may leave the primary.
type SplitMode uint8

// The ways to split reads from writes.
const (
	SplitAuto   SplitMode = iota // all that are proved to be reads
	SplitOff                     // none
	SplitHinted                  // those with a hint, or for which a rule says so
	SplitAny                     // all: the servers are alike, whatever they are
	SplitShadow                  // none, but some reads run on a replica as well, for comparison
)

var splitModes = []string{"auto", "off", "hinted", "any", "shadow"}

// Splits reports whether it matters what a statement does.
func (v SplitMode) Splits() bool { return v != SplitOff && v != SplitAny }

// String is the word of the file.
func (v SplitMode) String() string { return word(splitModes, v) }

// UnmarshalText accepts the words of the file.
func (v *SplitMode) UnmarshalText(p []byte) error { return setWord(v, splitModes, p) }

// Consistency says what a read on a replica must have seen.
type Consistency uint8

// The levels of consistency.
const (
	ConsistencyInherit  Consistency = iota // in User only: as the database has it
	ConsistencySession                     // the session's own writes, and what it has read
	ConsistencyEventual                    // nothing but the limit on lag
	ConsistencyGlobal                      // all writes acknowledged through this proxy
)

var consistencies = []string{"", "session", "eventual", "global"}

// String is the word of the file, or "" for ConsistencyInherit.
func (v Consistency) String() string { return word(consistencies, v) }

// UnmarshalText accepts the words of the file.
func (v *Consistency) UnmarshalText(p []byte) error { return setWord(v, consistencies, p) }

// ConsistencyScope says whose writes are the session's own.
type ConsistencyScope uint8

// The scopes of consistency.
const (
	ScopeSession ConsistencyScope = iota // those of the session
	ScopeUser                            // those of all sessions of its user, also of sessions that have ended
)

var consistencyScopes = []string{"session", "user"}

// String is the word of the file.
func (v ConsistencyScope) String() string { return word(consistencyScopes, v) }

// UnmarshalText accepts the words of the file.
func (v *ConsistencyScope) UnmarshalText(p []byte) error { return setWord(v, consistencyScopes, p) }

// TransactionReads says where a transaction block begins that may write.
type TransactionReads uint8

// Where such blocks begin.
const (
	TransactionReadsPrimary    TransactionReads = iota
	TransactionReadsUntilWrite                  // on a replica, and moves to the primary with its first statement that is no read
)

var transactionReads = []string{"primary", "until_write"}

// String is the word of the file.
func (v TransactionReads) String() string { return word(transactionReads, v) }

// UnmarshalText accepts the words of the file.
func (v *TransactionReads) UnmarshalText(p []byte) error { return setWord(v, transactionReads, p) }

// OnSessionState says what becomes of a statement that leaves in its session what
// cannot be carried to another server connection.
type OnSessionState uint8

// What becomes of such statements.
const (
	StatePin    OnSessionState = iota // the server connection stays with the client
	StateError                        // they are refused
	StateIgnore                       // they run, and what they leave is cleared away
)

var onSessionStates = []string{"pin", "error", "ignore"}

// String is the word of the file.
func (v OnSessionState) String() string { return word(onSessionStates, v) }

// UnmarshalText accepts the words of the file.
func (v *OnSessionState) UnmarshalText(p []byte) error { return setWord(v, onSessionStates, p) }

// PrimaryReads says when the primary serves reads that a replica could.
type PrimaryReads uint8

// When the primary serves reads.
const (
	PrimaryReadsFallback PrimaryReads = iota // when no replica may
	PrimaryReadsNever
	PrimaryReadsShare // as one of the replicas
)

var primaryReads = []string{"fallback", "never", "share"}

// String is the word of the file.
func (v PrimaryReads) String() string { return word(primaryReads, v) }

// UnmarshalText accepts the words of the file.
func (v *PrimaryReads) UnmarshalText(p []byte) error { return setWord(v, primaryReads, p) }

// LoadBalance says how one of several servers is chosen.
type LoadBalance uint8

// The ways to choose a server.
const (
	LoadBalanceLeastConn LoadBalance = iota
	LoadBalanceRoundRobin
	LoadBalanceRandom
	LoadBalanceFirst // the first that is up
)

var loadBalances = []string{"least_conn", "round_robin", "random", "first"}

// String is the word of the file.
func (v LoadBalance) String() string { return word(loadBalances, v) }

// UnmarshalText accepts the words of the file.
func (v *LoadBalance) UnmarshalText(p []byte) error { return setWord(v, loadBalances, p) }

// ServerRole is what the file says about a server.
type ServerRole uint8

// The roles of a server.
const (
	RoleAuto    ServerRole = iota // whatever it says itself
	RolePrimary                   // fixed
	RoleReplica                   // fixed
)

var serverRoles = []string{"auto", "primary", "replica"}

// String is the word of the file.
func (v ServerRole) String() string { return word(serverRoles, v) }

// UnmarshalText accepts the words of the file.
func (v *ServerRole) UnmarshalText(p []byte) error { return setWord(v, serverRoles, p) }

// FileMode are the permissions of a file.
type FileMode uint32

// String is the mode in octal digits, as "0777".
func (m FileMode) String() string { return fmt.Sprintf("%#o", uint32(m)) }

// UnmarshalText accepts octal digits.
func (m *FileMode) UnmarshalText(p []byte) error {
	n, err := strconv.ParseUint(string(p), 8, 32)
	if err != nil || n > 0o777 {
		return fmt.Errorf("%s is no mode of a file: want octal digits in a string, as \"0770\"", quote(string(p)))
	}
	*m = FileMode(n)
	return nil
}

func word[T ~uint8](words []string, v T) string {
	if int(v) < len(words) {
		return words[v]
	}
	return fmt.Sprintf("%T(%d)", v, uint8(v))
}

func setWord[T ~uint8](v *T, words []string, p []byte) error {
	given := string(p)
	if i := slices.Index(words, given); i >= 0 && given != "" {
		*v = T(i)
		return nil
	}
	return oneOf(words...)(given)
}
