package wire

import "fmt"

// SQLSTATEs that the proxy uses itself, from the PostgreSQL manual, appendix
// "PostgreSQL Error Codes".
const (
	CodeProtocolViolation     = "08P01"
	CodeConnectionFailure     = "08006"
	CodeCannotConnect         = "08001"
	CodeFeatureNotSupported   = "0A000"
	CodeInvalidParameterValue = "22023"
	CodeReadOnlyTransaction   = "25006"
	CodeUndefinedStatement    = "26000"
	CodeInvalidPassword       = "28P01"
	CodeInvalidAuthorization  = "28000"
	CodeUndefinedDatabase     = "3D000"
	CodeInsufficientPrivilege = "42501"
	CodeSerializationFailure  = "40001"
	CodeDeadlock              = "40P01"
	CodeSyntaxError           = "42601"
	CodeUndefinedColumn       = "42703"
	CodeUndefinedObject       = "42704"
	CodeDuplicatePrepared     = "42P05"
	CodeOutOfMemory           = "53200"
	CodeTooManyConnections    = "53300"
	CodeProgramLimit          = "54000"
	CodeObjectNotInState      = "55000"
	CodeQueryCanceled         = "57014"
	CodeAdminShutdown         = "57P01"
	CodeCrashShutdown         = "57P02"
	CodeCannotConnectNow      = "57P03"
	CodeInternal              = "XX000"
)

// Severities of ErrorResponse and NoticeResponse.
const (
	SeverityError   = "ERROR"
	SeverityFatal   = "FATAL"
	SeverityPanic   = "PANIC"
	SeverityWarning = "WARNING"
	SeverityNotice  = "NOTICE"
)

// Error is what a client is told. Its cause, if any, is for the log only.
type Error struct {
	Severity string
	Code     string // SQLSTATE
	Message  string
	Detail   string
	Hint     string
	Routine  string // of the server's source, where it was read from one; not sent
	cause    error
}

// Errorf makes an error of severity ERROR: the session goes on.
func Errorf(code, format string, args ...any) *Error {
	return &Error{Severity: SeverityError, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Fatalf makes an error of severity FATAL: the connection ends.
func Fatalf(code, format string, args ...any) *Error {
	return &Error{Severity: SeverityFatal, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Because returns e with the cause that is to be logged.
func (e *Error) Because(cause error) *Error { e.cause = cause; return e }

// WithHint returns e with a hint.
func (e *Error) WithHint(hint string) *Error { e.Hint = hint; return e }

// Error gives severity, text and SQLSTATE as psql shows them, and the cause.
func (e *Error) Error() string {
	s := e.Severity + ": " + e.Message + " (SQLSTATE " + e.Code + ")"
	if e.cause != nil {
		s += ": " + e.cause.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// Fatal reports whether the connection ends with this error.
func (e *Error) Fatal() bool { return e.Severity == SeverityFatal || e.Severity == SeverityPanic }

// Append appends e as an ErrorResponse message.
func (e *Error) Append(dst []byte) []byte { return e.append(dst, ErrorResponse) }

// AppendNotice appends e as a NoticeResponse message.
func (e *Error) AppendNotice(dst []byte) []byte { return e.append(dst, NoticeResponse) }

func (e *Error) append(dst []byte, typ byte) []byte {
	dst, at := begin(dst, typ)
	field := func(k byte, v string) {
		if v != "" {
			dst = appendString(append(dst, k), v)
		}
	}
	field('S', e.Severity)
	field('V', e.Severity)
	field('C', e.Code)
	field('M', e.Message)
	field('D', e.Detail)
	field('H', e.Hint)
	return finish(append(dst, 0), at)
}

// ReadError reads the body of an ErrorResponse or NoticeResponse as far as it
// goes: a server may leave any field out, and the body may be cut. The strings
// are copies.
func ReadError(body []byte) *Error {
	e := &Error{}
	for len(body) > 1 && body[0] != 0 {
		k := body[0]
		v, rest, ok := String(body[1:])
		if !ok {
			break
		}
		switch k {
		case 'S':
			if e.Severity == "" {
				e.Severity = string(v)
			}
		case 'V':
			e.Severity = string(v) // never translated
		case 'C':
			e.Code = string(v)
		case 'M':
			e.Message = string(v)
		case 'D':
			e.Detail = string(v)
		case 'H':
			e.Hint = string(v)
		case 'R':
			e.Routine = string(v)
		}
		body = rest
	}
	return e
}
