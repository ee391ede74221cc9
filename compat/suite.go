package compat

import (
	"fmt"
	"strconv"
)

// suite is a driver's tests and what they want to find.
type suite struct {
	name     string
	module   string
	version  string   // "" = the one that our go.mod has
	dir      string   // "" = in the module cache
	database string   // made anew for each way
	owner    string   // its owner, who runs the tests
	logins   []login  // besides those of other suites
	setup    []string // statements in the database
	env      func(t target) []string
}

// login is a role with a password, as the suite's own documentation makes it.
type login struct {
	name, password string
	attributes     string
	md5            bool // its secret on the server is an MD5 one
}

// target is where a suite finds its server.
type target struct {
	port   int    // on 127.0.0.1
	socket string // folder of its Unix socket
}

// password is that of all of pgx's roles in its own setup.
const password = "secret"

var suites = []suite{
	{
		name: "pgx", module: "github.com/jackc/pgx/v5", database: "pgx_test", owner: "pgx_md5",
		// As testsetup/postgresql_setup.sql has it, but for TLS and OAuth, which the
		// servers here do not offer: the tests for those are skipped.
		logins: []login{
			{"pgx_md5", password, "SUPERUSER", true},
			{"pgx_pw", password, "SUPERUSER", false},
			{"pgx_scram", password, "SUPERUSER", false},
			{` tricky, ' } " \ test user `, password, "SUPERUSER", false},
		},
		setup: []string{"CREATE EXTENSION hstore", "CREATE EXTENSION ltree", "CREATE DOMAIN uint64 AS numeric(20,0)"},
		env: func(t target) []string {
			dsn := func(user, more string) string {
				return fmt.Sprintf("host=127.0.0.1 port=%d user=%s password=%s dbname=pgx_test%s", t.port, user, password, more)
			}
			return []string{
				"PGX_TEST_DATABASE=" + dsn("pgx_md5", ""),
				"PGX_TEST_TCP_CONN_STRING=" + dsn("pgx_md5", ""),
				"PGX_TEST_MD5_PASSWORD_CONN_STRING=" + dsn("pgx_md5", ""),
				"PGX_TEST_PLAIN_PASSWORD_CONN_STRING=" + dsn("pgx_pw", ""),
				"PGX_TEST_SCRAM_PASSWORD_CONN_STRING=" + dsn("pgx_scram", " channel_binding=disable"),
				"PGX_TEST_PGBOUNCER_CONN_STRING=" + dsn("pgx_md5", ""),
				fmt.Sprintf("PGX_TEST_UNIX_SOCKET_CONN_STRING=host=%s port=%d user=pgx_md5 password=%s dbname=pgx_test", t.socket, t.port, password),
			}
		},
	},
	pq("pq", "no"),
	pq("pq-binary", "yes"),
}

// pq is lib/pq's suite, which its authors run with and without binary parameters.
func pq(name, binary string) suite {
	return suite{
		name: name, module: "github.com/lib/pq", version: "v1.12.3", database: "pqgo", owner: "pqgo",
		logins: []login{
			{"pqgo", "pqgo", "SUPERUSER", false},
			{"pqgopassword", "wordpass", "", false},
			{"pqgoscram", "wordpass", "", false},
			{"pqgomd5", "wordpass", "", true},
		},
		env: func(t target) []string {
			// Its tests compare what the environment makes of a connection: the
			// password comes from pgpass, the rest from their own defaults.
			return []string{"PGPORT=" + strconv.Itoa(t.port), "PQTEST_BINARY_PARAMETERS=" + binary}
		},
	}
}

// pgpass is for suites whose tests are given no password. pgproxy's clients prove
// theirs by SCRAM, and so do those that log in directly: what the tests hear of a
// wrong one is the same.
const pgpass = "localhost:*:*:pqgo:pqgo\n"

// hba lets every role in with its password.
const hba = `local all         all                   md5
host  replication all     127.0.0.1/32  scram-sha-256
host  all         pgx_pw  127.0.0.1/32  password
host  all         all     127.0.0.1/32  md5
`
