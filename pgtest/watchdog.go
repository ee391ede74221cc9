package pgtest

import (
	"fmt"
	"io"
	"os/exec"
	"syscall"
)

// watchdogScript outlives this process if it is killed. It reads the folder of
// a cluster, then waits: a second line means that the cluster was closed in
// good order; the end of the pipe without one means that the process is gone.
// Then every process that carries the folder's name in its command line is ended (the name is
// random, so these are ours alone), and the folder goes. The name is not an
// argument of the script or of grep, so neither finds itself.
const watchdogScript = `
read -r dir || exit 0
read -r closed && exit 0
[ -n "$dir" ] || exit 0
victims() {
	printf '%s\n' "$dir" | grep -l -a -F -f - /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3
}
wake() {
	for p in $1; do
		kill -CONT "$p" $(grep -l "^PPid:[[:space:]]*$p\$" /proc/[0-9]*/status 2>/dev/null | cut -d/ -f3) 2>/dev/null
	done
}
i=0
while [ $i -lt 100 ]; do
	v=$(victims)
	[ -n "$v" ] || break
	if [ $i -lt 40 ]; then
		kill -QUIT $v 2>/dev/null
	else
		kill -KILL $v 2>/dev/null
	fi
	wake "$v"
	i=$((i + 1))
	sleep 0.1
done
rm -rf -- "$dir"
`

// watchdog is the shell that runs watchdogScript for one folder.
type watchdog struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// startWatchdog watches over dir, which must be an absolute path with a random
// part.
func startWatchdog(dir string) (*watchdog, error) {
	cmd := exec.Command("/bin/sh", "-c", watchdogScript)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	w := &watchdog{cmd: cmd, pipe: pipe}
	if _, err := fmt.Fprintf(pipe, "%s\n", dir); err != nil {
		w.release(true)
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	return w, nil
}

// release ends the watchdog. Unless done, it first ends what is left of the
// folder and its processes (at most about 10 s).
func (w *watchdog) release(done bool) {
	if done {
		_, _ = io.WriteString(w.pipe, "closed\n") // a dead watchdog is no loss here
	}
	_ = w.pipe.Close()
	_ = w.cmd.Wait()
}
