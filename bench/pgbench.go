package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pgproxy/pgtest"
)

// The database and the login that all peers use. The password is no secret: the
// servers listen on 127.0.0.1 for as long as the run lasts.
const (
	database = "bench"
	login    = "bench"
	password = "bench"
	loopback = "127.0.0.1"
)

// pgbenchThreads is pgbench -j.
const pgbenchThreads = 2

// Workload is one way to load a peer.
type Workload struct {
	Script  string `json:"script"` // select or tpcb
	Mode    string `json:"mode"`   // pgbench -M
	Clients int    `json:"clients"`
}

// String names the workload in the report.
func (w Workload) String() string {
	return fmt.Sprintf("%s, %s, %d clients", w.Script, w.Mode, w.Clients)
}

// file names the workload in file names.
func (w Workload) file() string { return fmt.Sprintf("%s-%s-%d", w.Script, w.Mode, w.Clients) }

// args are those of pgbench without the address.
func (w Workload) args(seconds int) []string {
	args := []string{"-n"}
	if w.Script == "select" {
		args = append(args, "-S")
	}
	return append(args, "-M", w.Mode, "-c", strconv.Itoa(w.Clients), "-j", strconv.Itoa(pgbenchThreads), "-T", strconv.Itoa(seconds))
}

// logArgs make pgbench note latencies in files that begin with prefix.
func logArgs(prefix string, sample float64) []string {
	args := []string{"--log", "--log-prefix=" + prefix}
	if sample < 1 {
		args = append(args, "--sampling-rate="+strconv.FormatFloat(sample, 'g', -1, 64))
	}
	return args
}

// address tells pgbench whom to talk to.
func address(port int) []string {
	return []string{"-h", loopback, "-p", strconv.Itoa(port), "-U", login, database}
}

// runPgbench runs pgbench to its end, or until ctx ends or it takes longer than
// atMost, and returns what it printed on standard output.
func runPgbench(ctx context.Context, path string, atMost time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, atMost, fmt.Errorf("it took more than %s", atMost))
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = pgtest.ChildEnv("PGPASSWORD="+password, "PGSSLMODE=disable", "PGGSSENCMODE=disable")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C reaches only us
	cmd.WaitDelay = 5 * time.Second
	var out, complaints bytes.Buffer
	cmd.Stdout = &out
	cmd.Stderr = &complaints
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("pgbench: %w", context.Cause(ctx))
		}
		return "", fmt.Errorf("pgbench: %w: %s", err, firstLines(complaints.String(), 5))
	}
	return out.String(), nil
}

// summary is what pgbench prints at its end.
type summary struct {
	transactions int64
	failed       int64
	tps          float64 // without the time that connecting took
}

// parseSummary reads the output of pgbench 10 and newer.
func parseSummary(text string) (summary, error) {
	var s summary
	var counted, timed bool
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(line, ": ")
		if ok {
			value, _, _ = strings.Cut(strings.TrimSpace(value), " ")
			value, _, _ = strings.Cut(value, "/") // "1000/1000" of a run with -t
			var err error
			switch name {
			case "number of transactions actually processed":
				s.transactions, err = strconv.ParseInt(value, 10, 64)
				counted = true
			case "number of failed transactions":
				s.failed, err = strconv.ParseInt(value, 10, 64)
			}
			if err != nil {
				return s, fmt.Errorf("output of pgbench: %w", err)
			}
			continue
		}
		// Older versions print a second value, which includes connecting, in front.
		rest, ok := strings.CutPrefix(line, "tps = ")
		if !ok || strings.Contains(rest, "(including") {
			continue
		}
		value, _, _ = strings.Cut(strings.TrimSpace(rest), " ")
		var err error
		if s.tps, err = strconv.ParseFloat(value, 64); err != nil {
			return s, fmt.Errorf("output of pgbench: %w", err)
		}
		timed = true
	}
	if counted && s.transactions == 0 { // it prints no tps then
		return s, errors.New("pgbench finished no transaction: are the logins slower than the round is long?")
	}
	if !counted || !timed {
		return s, fmt.Errorf("output of pgbench: no number of transactions or no tps in %q", text)
	}
	return s, nil
}

func firstLines(text string, n int) string {
	lines := strings.SplitN(strings.TrimSpace(text), "\n", n+1)
	return strings.Join(lines[:min(n, len(lines))], "; ")
}
