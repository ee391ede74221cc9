// Command pgproxy is a PostgreSQL proxy: it pools connections, sends reads to
// replicas and everything else to the primary.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2 // wrong arguments, or a configuration that cannot be used
)

// command is one subcommand. run returns the process's exit code.
type command struct {
	name, args, help string
	run              func(args []string, stdout, stderr io.Writer) int
}

func commands() []command {
	return []command{
		{"run", "-config FILE", "serve clients as FILE says", runCommand},
		{"upgrade", "[-config FILE | -pid PID]", "have a running pgproxy replaced by the program that is installed now, without refusing a client", upgradeCommand},
		{"check", "-config FILE", "say what is wrong or risky in FILE, and compare pool sizes with max_connections", checkCommand},
		{"convert", "FILE.ini", "print a pgbouncer.ini as the TOML that means the same", convertCommand},
		{"route", "[-config FILE] 'SQL'", "say where a statement would go, and why", routeCommand},
		{"demo", "[-for 20s]", "a throwaway primary, two replicas and pgproxy in front, with live figures", demoCommand},
		{"version", "", "print the version", versionCommand},
	}
}

func main() { os.Exit(dispatch(os.Args[1:], os.Stdout, os.Stderr)) }

func dispatch(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		usage(stderr)
		return exitUsage
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		usage(stdout)
		return exitOK
	case "-V", "-version", "--version":
		return bouncerVersion(stdout)
	}
	for _, c := range commands() {
		if c.name == args[0] {
			return c.run(args[1:], stdout, stderr)
		}
	}
	if asBouncer(args) {
		return bouncerCommand(args, stdout, stderr)
	}
	fmt.Fprintf(stderr, "pgproxy: there is no command %q; \"pgproxy help\" lists them\n", args[0])
	return exitUsage
}

// asBouncer tells whether the arguments are those of PgBouncer: options, and the
// name of a file.
func asBouncer(args []string) bool {
	if strings.HasPrefix(args[0], "-") {
		return true
	}
	_, err := os.Stat(args[0])
	return err == nil || strings.ContainsAny(args[0], "./")
}

func usage(w io.Writer) {
	var b strings.Builder
	b.WriteString("pgproxy: a PostgreSQL proxy\n\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "  pgproxy %-28s %s\n", strings.TrimSpace(c.name+" "+c.args), c.help)
	}
	b.WriteString("\n\"pgproxy COMMAND -h\" lists the options of a command.\n")
	b.WriteString(`
As PgBouncer is called:

  pgproxy [OPTION]... FILE.ini
    -d, --daemon           run in the background
    -q, --quiet            no log on stderr
    -v, --verbose          debug messages in the log
    -u, --user=USERNAME    become this user of the system
    -R, --reboot           online restart, which is not supported: see so_reuseport
    -V, --version          print the version
    -h, --help             print this
`)
	_, _ = io.WriteString(w, b.String())
}

// newFlags makes the flag set of a command.
func newFlags(name, args string, stderr io.Writer) *flag.FlagSet {
	fs := flag.NewFlagSet("pgproxy "+name, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintf(stderr, "usage: pgproxy %s %s\n", name, args)
		fs.PrintDefaults()
	}
	return fs
}

// parseFlags parses the arguments of a command; where done is set the command
// ends with code.
func parseFlags(fs *flag.FlagSet, args []string) (code int, done bool) {
	switch err := fs.Parse(args); {
	case err == nil:
		return exitOK, false
	case errors.Is(err, flag.ErrHelp):
		return exitOK, true
	}
	return exitUsage, true
}
