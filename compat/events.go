package compat

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// unsteady is the status of a test that failed, and passed each time when it was
// run again alone.
const unsteady = "unsteady"

// outcome is what became of a suite's tests in one way.
type outcome struct {
	status map[string]string   // by test: pass, skip, fail or unsteady
	output map[string][]string // lines of those that failed

	own *regexp.Regexp // folders of this run in names of tests
}

// newOutcome is for tests whose temporary folders are in tmp.
func newOutcome(tmp string) *outcome {
	return &outcome{
		status: make(map[string]string), output: make(map[string][]string),
		own: regexp.MustCompile(regexp.QuoteMeta(tmp) + "/[^/]*"),
	}
}

// errNoTest says that a package failed though none of its tests did.
var errNoTest = errors.New("failed without a test that failed")

// event is one line of test2json: see "go doc test2json".
type event struct {
	Action, Package, Test, Output string
}

// read takes over the events of one package's run. Of a test that runs more than
// once the worst counts.
func (o *outcome) read(pkg string, r io.Reader) error {
	in := bufio.NewScanner(r)
	in.Buffer(nil, 16<<20)
	lines := make(map[string][]string)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			return fmt.Errorf("test2json: %w: %q", err, in.Text())
		}
		name := pkg
		if e.Test != "" {
			name += "." + o.own.ReplaceAllLiteralString(e.Test, "TMP")
		}
		switch e.Action {
		case "output":
			lines[name] = append(lines[name], e.Output)
			continue
		case "pass", "skip", "fail":
		default:
			continue
		}
		if e.Action == "fail" {
			o.output[name] = append(o.output[name], lines[name]...)
		}
		delete(lines, name)
		if e.Test == "" {
			continue // the whole package: its tests have said it
		}
		if worse(e.Action, o.status[name]) {
			o.status[name] = e.Action
		}
	}
	return in.Err()
}

func worse(a, b string) bool {
	order := []string{"", "skip", "pass", "fail"}
	return slices.Index(order, a) > slices.Index(order, b)
}

// failed lists the tests that failed by themselves, not only because a subtest
// did, in order.
func (o *outcome) failed() []string {
	var out []string
	for name, st := range o.status {
		if st == "fail" && !o.within(name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// forgive makes a failed test an unsteady one, and those around it that failed only
// because of it a passed one.
func (o *outcome) forgive(name string) {
	o.status[name] = unsteady
	for i := strings.LastIndexByte(name, '/'); i > 0; i = strings.LastIndexByte(name[:i], '/') {
		if o.status[name[:i]] != "fail" || o.within(name[:i]) {
			return
		}
		o.status[name[:i]] = "pass"
	}
}

// within reports whether a subtest of this test failed.
func (o *outcome) within(name string) bool {
	for sub, st := range o.status {
		if st == "fail" && strings.HasPrefix(sub, name+"/") {
			return true
		}
	}
	return false
}

// count is how many tests ended so. A test counts beside its subtests.
func (o *outcome) count(status string) int {
	n := 0
	for _, st := range o.status {
		if st == status {
			n++
		}
	}
	return n
}

// testBinary runs the tests of one package and adds what became of them. An error
// is one that is not told by a test.
func (o *outcome) testBinary(ctx context.Context, b binary, test2json string, env, args []string) error {
	args = append([]string{"-p", b.name, b.path, "-test.v=test2json"}, args...)
	cmd := exec.CommandContext(ctx, test2json, args...)
	cmd.Dir = b.dir
	cmd.Env = env
	// A group of their own: the tests end with test2json.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var events, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &events, &bad
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		return fmt.Errorf("tests of %s: %w", b.name, err)
	} else if ok && events.Len() == 0 {
		return fmt.Errorf("tests of %s: %w: %s", b.name, exit, bad.String())
	}
	before := len(o.failed())
	if rerr := o.read(b.name, &events); rerr != nil {
		return fmt.Errorf("tests of %s: %w", b.name, rerr)
	}
	if err != nil && len(o.failed()) == before {
		return fmt.Errorf("tests of %s: %w: %w: %s", b.name, errNoTest, err, strings.Join(o.output[b.name], ""))
	}
	return nil
}
