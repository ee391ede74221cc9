package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// startTimeout bounds a server's way up, stopTimeout its way down.
const (
	startTimeout = 60 * time.Second
	stopTimeout  = 60 * time.Second
	pollEvery    = 10 * time.Millisecond
)

// Node is one PostgreSQL server. Its methods may be called from any goroutine;
// those that start and end the process wait for one another.
type Node struct {
	// set at construction
	Name string // primary, replica1, ...: also its application_name to the primary
	Host string // 127.0.0.1
	Port int
	Dir  string // data folder
	Log  string // file with what the server says

	cluster *Cluster

	// guarded by op: held by one start, stop or clone at a time
	op       sync.Mutex
	upstream *Node // whom it follows; nil for a primary

	// guarded by mu
	mu   sync.Mutex
	proc *process // nil when it does not run
}

// process is one run of a server.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been waited for
	err  error         // set before done is closed
}

func newNode(c *Cluster, name string, p *port) *Node {
	return &Node{
		Name:    name,
		Host:    "127.0.0.1",
		Port:    p.number,
		Dir:     filepath.Join(c.Dir, name),
		Log:     filepath.Join(c.Dir, name+".log"),
		cluster: c,
	}
}

// Addr is the node's host:port.
func (n *Node) Addr() string { return n.Host + ":" + strconv.Itoa(n.Port) }

// DSN is a connection string to the node for libpq, pgx and pgbench. It holds
// the password if the cluster knows that of the user (see CreateRole).
func (n *Node) DSN(db, user string) string {
	return n.cluster.dsn(n.Host, n.Port, db, user)
}

// Running reports whether the server process exists.
func (n *Node) Running() bool { return n.process() != nil }

// PID is the process id of the server's first process (the postmaster), 0 when
// it does not run.
func (n *Node) PID() int {
	if p := n.process(); p != nil {
		return p.cmd.Process.Pid
	}
	return 0
}

func (n *Node) process() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc
}

// Start starts a stopped server and waits until it takes connections.
func (n *Node) Start() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return n.launch(ctx)
}

// Stop ends the server as "pg_ctl stop -m mode" does: "smart" waits for clients
// to leave, "fast" breaks their connections, "immediate" crashes. It waits for
// the end of the process, 60 s at most.
func (n *Node) Stop(mode string) error {
	sig, ok := map[string]syscall.Signal{
		"smart": syscall.SIGTERM, "fast": syscall.SIGINT, "immediate": syscall.SIGQUIT,
	}[mode]
	if !ok {
		return fmt.Errorf("stop %s: mode %q, want smart, fast or immediate", n.Name, mode)
	}
	n.op.Lock()
	defer n.op.Unlock()
	p := n.process()
	if p == nil {
		return fmt.Errorf("stop %s: it does not run", n.Name)
	}
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("stop %s: %w", n.Name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("stop %s: %s took more than %s", n.Name, mode, stopTimeout)
	}
}

// Restart is Stop and Start.
func (n *Node) Restart(mode string) error {
	if err := n.Stop(mode); err != nil {
		return err
	}
	return n.Start()
}

// Kill ends the server and all its processes by SIGKILL, as if the machine had
// lost power but for the page cache, and waits until they are gone. Connections
// are closed by the kernel.
func (n *Node) Kill() error {
	n.op.Lock()
	defer n.op.Unlock()
	p := n.process()
	if p == nil {
		return fmt.Errorf("kill %s: it does not run", n.Name)
	}
	n.kill(p)
	return nil
}

func (n *Node) kill(p *process) {
	// Stopped first, it starts no new children while we look for them.
	pid := p.cmd.Process.Pid
	_ = p.cmd.Process.Signal(syscall.SIGSTOP)
	children := childrenOf(pid)
	_ = p.cmd.Process.Kill()
	for _, c := range children {
		_ = syscall.Kill(c, syscall.SIGKILL)
	}
	<-p.done
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if !anyAlive(children) {
			return
		}
		<-time.After(pollEvery)
	}
}

// Signal sends a signal to the server's first process, for example SIGHUP. To
// stop a whole server see Freeze.
func (n *Node) Signal(sig os.Signal) error {
	p := n.process()
	if p == nil {
		return fmt.Errorf("signal %s: it does not run", n.Name)
	}
	return p.cmd.Process.Signal(sig)
}

// Freeze stops all processes of the server by SIGSTOP: the kernel still takes
// connections and bytes, nobody answers. Thaw undoes it.
func (n *Node) Freeze() error { return n.signalAll(syscall.SIGSTOP) }

// Thaw lets a frozen server go on.
func (n *Node) Thaw() error { return n.signalAll(syscall.SIGCONT) }

func (n *Node) signalAll(sig syscall.Signal) error {
	p := n.process()
	if p == nil {
		return fmt.Errorf("signal %s: it does not run", n.Name)
	}
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal %s: %w", n.Name, err)
	}
	for _, c := range childrenOf(p.cmd.Process.Pid) {
		_ = syscall.Kill(c, sig) // it may just have ended
	}
	return nil
}

// end brings the server down for good, and with it what it left outside its
// folder.
func (n *Node) end(ctx context.Context) error {
	n.op.Lock()
	defer n.op.Unlock()
	if p := n.process(); p != nil {
		_ = n.signalAll(syscall.SIGCONT)
		_ = p.cmd.Process.Signal(syscall.SIGQUIT)
		select {
		case <-p.done:
		case <-ctx.Done():
			n.kill(p)
		}
	}
	removeSharedMemory(n.Dir)
	return nil
}

// launch starts the process and waits until it takes connections. When it
// fails no process is left.
func (n *Node) launch(ctx context.Context) error {
	n.op.Lock()
	defer n.op.Unlock()
	if n.process() != nil {
		return fmt.Errorf("start %s: it runs already", n.Name)
	}
	out, err := os.OpenFile(n.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	defer out.Close()
	cmd := exec.Command(filepath.Join(n.cluster.BinDir, "postgres"), "-D", n.Dir)
	cmd.Dir = n.cluster.Dir
	cmd.Env = ChildEnv()
	cmd.SysProcAttr = n.cluster.account.attributes()
	cmd.Stdout = out
	cmd.Stderr = out
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	n.mu.Lock()
	n.proc = p
	n.mu.Unlock()
	go func() { // ends with the server process, which Close ends
		p.err = cmd.Wait()
		n.mu.Lock()
		n.proc = nil
		n.mu.Unlock()
		close(p.done)
	}()
	if err := n.waitReady(ctx, p); err != nil {
		n.kill(p)
		return err
	}
	return nil
}

// waitReady waits until the server notes in its pid file that it takes
// connections, as pg_ctl does.
func (n *Node) waitReady(ctx context.Context, p *process) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			return fmt.Errorf("start %s: the server ended: %w\n%s", n.Name, p.err, n.LogTail(2048))
		case <-ctx.Done():
			return fmt.Errorf("start %s: %w\n%s", n.Name, context.Cause(ctx), n.LogTail(2048))
		case <-tick.C:
		}
		lines := pidFile(n.Dir)
		if len(lines) >= 8 && lines[0] == strconv.Itoa(p.cmd.Process.Pid) && strings.TrimSpace(lines[7]) == "ready" {
			return nil
		}
	}
}

// pidFile returns the lines of the server's pid file: process id, data folder,
// start time, port, socket folder, listen address, shared memory key and id,
// status.
func pidFile(dir string) []string {
	text, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return nil
	}
	return strings.Split(string(text), "\n")
}

// LogTail returns the last max bytes of the server's log, from a line's start.
func (n *Node) LogTail(max int) string {
	text, err := os.ReadFile(n.Log)
	if err != nil {
		return err.Error()
	}
	if len(text) > max {
		text = text[len(text)-max:]
		if i := strings.IndexByte(string(text), '\n'); i >= 0 {
			text = text[i+1:]
		}
	}
	return string(text)
}

// follow makes a copied data folder that of a standby; writeConfig must come
// after it.
func (n *Node) follow(up *Node) error {
	n.upstream = up
	signal := filepath.Join(n.Dir, "standby.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	return n.cluster.account.own(signal)
}

// settings are those of the node alone, whoever it follows.
func (n *Node) settings() map[string]string {
	conf := map[string]string{
		"listen_addresses":                    n.Host,
		"port":                                strconv.Itoa(n.Port),
		"unix_socket_directories":             "",
		"cluster_name":                        n.Name,
		"max_connections":                     strconv.Itoa(n.cluster.opt.MaxConnections),
		"shared_buffers":                      "32MB",
		"dynamic_shared_memory_type":          "mmap", // nothing outside the folder
		"fsync":                               "off",
		"full_page_writes":                    "off",
		"wal_level":                           "replica",
		"max_wal_senders":                     "12",
		"wal_keep_size":                       "128MB",
		"min_wal_size":                        "8MB",
		"max_wal_size":                        "512MB",
		"hot_standby":                         "on",
		"wal_retrieve_retry_interval":         "100ms",
		"wal_receiver_status_interval":        "1s",
		"password_encryption":                 "scram-sha-256",
		"log_line_prefix":                     "%m [%p] %q%u@%d ",
		"lc_messages":                         "C",
		"timezone":                            "UTC",
		"log_timezone":                        "UTC",
		"jit":                                 "off",
		"max_prepared_transactions":           "10",
		"track_commit_timestamp":              "on",
		"restart_after_crash":                 "on",
		"logging_collector":                   "off",
		"log_destination":                     "stderr",
		"max_standby_streaming_delay":         "30s",
		"checkpoint_timeout":                  "5min",
		"idle_in_transaction_session_timeout": "0",
	}
	for k, v := range n.cluster.opt.Settings {
		conf[k] = v
	}
	return conf
}

// writeConfig writes postgresql.conf whole. ALTER SYSTEM goes before it, so
// tests may use that.
func (n *Node) writeConfig() error {
	conf := n.settings()
	if up := n.upstream; up != nil {
		conf["primary_conninfo"] = fmt.Sprintf("host=%s port=%d user=%s password=%s application_name=%s sslmode=disable",
			up.Host, up.Port, n.cluster.Superuser, n.cluster.Password, n.Name)
	}
	names := make([]string, 0, len(conf))
	for k := range conf {
		names = append(names, k)
	}
	sort.Strings(names)
	var b strings.Builder
	for _, k := range names {
		fmt.Fprintf(&b, "%s = '%s'\n", k, strings.ReplaceAll(conf[k], "'", "''"))
	}
	path := filepath.Join(n.Dir, "postgresql.conf")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	return n.cluster.account.own(path)
}

// Follow makes a running standby follow another node, for example after that
// was promoted. It needs no restart.
func (n *Node) Follow(up *Node) error {
	n.op.Lock()
	defer n.op.Unlock()
	if n.upstream == nil {
		return fmt.Errorf("follow: %s is no standby, see Clone", n.Name)
	}
	n.upstream = up
	if err := n.writeConfig(); err != nil {
		return err
	}
	return n.Signal(syscall.SIGHUP)
}

// Clone throws the node's data away and makes it a standby of a running node by
// a base backup: the way back for a primary that was replaced. It is started and
// has caught up when Clone returns.
func (n *Node) Clone(ctx context.Context, from *Node) error {
	if n.Running() {
		if err := n.Stop("immediate"); err != nil {
			return err
		}
	}
	if err := n.clone(ctx, from); err != nil {
		return fmt.Errorf("clone %s: %w", n.Name, err)
	}
	if err := n.launch(ctx); err != nil {
		return err
	}
	return n.WaitCaughtUp(ctx)
}

func (n *Node) clone(ctx context.Context, from *Node) error {
	n.op.Lock()
	defer n.op.Unlock()
	removeSharedMemory(n.Dir)
	if err := os.RemoveAll(n.Dir); err != nil {
		return err
	}
	if err := n.baseBackup(ctx, from); err != nil {
		return err
	}
	// What ALTER SYSTEM set on the other node is that node's own.
	auto := filepath.Join(n.Dir, "postgresql.auto.conf")
	if err := os.Truncate(auto, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := n.follow(from); err != nil {
		return err
	}
	return n.writeConfig()
}

// baseBackup copies a running node's data: with pg_basebackup or, where the server
// programs come without it, file by file between pg_backup_start and
// pg_backup_stop, see "Making a Base Backup Using the Low Level API" in
// PostgreSQL's manual. The WAL that makes the copy whole is then streamed.
func (n *Node) baseBackup(ctx context.Context, from *Node) error {
	c := n.cluster
	program := filepath.Join(c.BinDir, "pg_basebackup")
	if _, err := os.Stat(program); err == nil {
		return runProgram(ctx, c.account, c.Dir, []string{"PGPASSWORD=" + c.Password},
			program, "-D", n.Dir, "-h", from.Host, "-p", strconv.Itoa(from.Port),
			"-U", c.Superuser, "-X", "stream", "-c", "fast", "--no-sync", "--no-manifest", "--no-password")
	}
	conn, err := from.connect(ctx, "postgres") // the backup lasts as long as the session
	if err != nil {
		return err
	}
	defer closeConn(conn)
	if _, err := query(ctx, from.Name, conn, "SELECT pg_backup_start('clone', true)"); err != nil {
		return err
	}
	// Files may vanish while they are copied.
	const copyAll = `mkdir -m 700 "$2" && cd "$1" && tar -cf - --warning=no-file-changed --warning=no-file-removed --ignore-failed-read ` +
		`--exclude=./postmaster.pid --exclude=./postmaster.opts --exclude='./pg_wal/*' --exclude='./pg_replslot/*' . | tar -xf - -C "$2"`
	if err := runProgram(ctx, c.account, c.Dir, nil, "sh", "-c", copyAll, "sh", from.Dir, n.Dir); err != nil {
		return err
	}
	rows, err := query(ctx, from.Name, conn, "SELECT labelfile FROM pg_backup_stop(false)")
	if err != nil {
		return err
	}
	for _, sub := range []string{"pg_wal/archive_status", "pg_wal/summaries"} {
		if err := runProgram(ctx, c.account, c.Dir, nil, "mkdir", "-p", "-m", "700", filepath.Join(n.Dir, sub)); err != nil {
			return err
		}
	}
	label := filepath.Join(n.Dir, "backup_label")
	if err := os.WriteFile(label, []byte(rows[0][0]), 0o600); err != nil {
		return err
	}
	return c.account.own(label)
}
