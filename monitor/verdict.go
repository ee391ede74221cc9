package monitor

import (
	"errors"
	"os"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/backend"
)

// verdict is what one check says about a server.
type verdict uint8

const (
	alive   verdict = iota // it answered
	kept                   // it answered, but not to the question: its state stays
	failing                // no answer; the second time in a row it is down
	dead                   // it is down
)

// failuresToDown is how many failing checks in a row make a server down.
const failuresToDown = 2

// SQLSTATEs that a check tells apart.
const (
	codeTooManyConnections = "53300"
	codeAdminShutdown      = "57P01"
	codeCrashShutdown      = "57P02"
	codeCannotConnectNow   = "57P03"
)

// judgeLogin judges a failed attempt to connect and log in. A server that
// refuses the login in its own words is there: only those words say that it is
// down which mean that nobody can log in.
func judgeLogin(err error) verdict {
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pe.Code {
		case codeAdminShutdown, codeCrashShutdown, codeCannotConnectNow:
			return dead
		}
		return kept
	}
	// ENOENT is a Unix socket without a file.
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		return dead
	}
	return failing
}

// broken reports whether the connection is of no more use, though nothing says
// yet that the server is down: another login may tell.
func broken(err error) bool {
	return err != nil && !refused(err) && !errors.Is(err, os.ErrDeadlineExceeded)
}

// refused reports whether the server answered a query with an error and goes on.
func refused(err error) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pe.SeverityUnlocalized != "FATAL" && pe.SeverityUnlocalized != "PANIC" &&
		pe.Severity != "FATAL" && pe.Severity != "PANIC"
}

// words is the text of an error for people.
func words(err error) string {
	if err == nil {
		return ""
	}
	return backend.LoginError(err).Error()
}
