package pgtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// patroniPrograms are what StartPatroni needs besides PostgreSQL.
var patroniPrograms = []string{"etcd", "patroni", "patronictl"}

// PatroniScope is the name of every cluster that StartPatroni starts.
const PatroniScope = "test"

// Patroni is a cluster whose servers Patroni starts, stops and promotes: one etcd,
// and a Patroni for each server. Nodes are its servers, in the order of their names;
// they may be asked and killed, see KillMember, but not started or stopped by their
// own methods. Synchronous mode is on, so a commit that was acknowledged is on the
// only server that may become the leader.
type Patroni struct {
	*Cluster
	URLs []string // REST API of each node

	etcd    *Process
	members []*Process // in the order of the nodes
	configs []string   // files
}

// FindPatroni is nil if everything is installed that StartPatroni needs.
func FindPatroni() error {
	var missing []string
	for _, name := range patroniPrograms {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	bin, err := FindBin("")
	if err != nil {
		return err
	}
	for _, name := range []string{"pg_basebackup", "pg_controldata", "pg_rewind"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			missing = append(missing, filepath.Join(bin, name))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not installed: %s (as root, \"make patroni\" installs Debian's packages)", strings.Join(missing, ", "))
	}
	return nil
}

// StartPatroni starts a leader and replicas for one test, and ends them at the test's
// end. A test that fails gets the last lines of their logs.
func StartPatroni(t testing.TB, replicas int) *Patroni {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	p, err := startPatroni(ctx, replicas)
	if err != nil {
		t.Fatalf("starting Patroni: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range p.Nodes() {
				t.Logf("end of the log of %s:\n%s", n.Name, n.LogTail(8192))
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Errorf("closing Patroni: %v", err)
		}
	})
	return p
}

func startPatroni(ctx context.Context, replicas int) (*Patroni, error) {
	bin, err := FindBin("")
	if err != nil {
		return nil, err
	}
	acc, err := serverAccount()
	if err != nil {
		return nil, err
	}
	dir, err := makeFolder("", acc)
	if err != nil {
		return nil, err
	}
	dog, err := startWatchdog(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	p := &Patroni{Cluster: &Cluster{
		Superuser: Superuser, Password: SuperuserPassword, Dir: dir, BinDir: bin,
		opt: Options{MaxConnections: 200}, account: acc, watchdog: dog,
		passwords: map[string]string{Superuser: SuperuserPassword},
	}}
	if err := p.start(ctx, 1+replicas); err != nil {
		for _, n := range p.Nodes() {
			err = fmt.Errorf("%w\n%s: %s", err, n.Name, n.LogTail(4096))
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return nil, errors.Join(err, p.Close(ctx))
	}
	return p, nil
}

func (p *Patroni) start(ctx context.Context, n int) error {
	ports, err := takePorts(2 + 2*n)
	if err != nil {
		return err
	}
	p.ports = ports
	client, peer, rest := ports[0], ports[1], ports[2:2+n]
	for i, port := range ports[2+n:] {
		node := newNode(p.Cluster, "pg"+strconv.Itoa(i+1), port)
		if i == 0 {
			p.Primary = node
		} else {
			p.Replicas = append(p.Replicas, node)
		}
	}
	if err := p.startEtcd(client, peer); err != nil {
		return err
	}
	for i, node := range p.Nodes() {
		p.URLs = append(p.URLs, "http://127.0.0.1:"+strconv.Itoa(rest[i].number))
		path := filepath.Join(p.Dir, node.Name+".json")
		if err := p.writeMember(path, node, rest[i].number, client.number); err != nil {
			return err
		}
		p.configs = append(p.configs, path)
		p.members = append(p.members, nil)
		rest[i].release()
		ports[2+n+i].release()
	}
	// The first one makes the database, the others copy it.
	if err := p.StartMember(p.Primary); err != nil {
		return err
	}
	if err := p.waitLogin(ctx, p.Primary, "SELECT NOT pg_is_in_recovery()"); err != nil {
		return err
	}
	var g errgroup.Group
	for _, node := range p.Replicas {
		if err := p.StartMember(node); err != nil {
			return err
		}
		g.Go(func() error {
			return p.waitLogin(ctx, node, "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')")
		})
	}
	if err := g.Wait(); err != nil || len(p.Replicas) == 0 {
		return err
	}
	return p.Primary.WaitFor(ctx, "postgres", "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')")
}

func (p *Patroni) startEtcd(client, peer *port) error {
	at := func(port *port) string { return "http://127.0.0.1:" + strconv.Itoa(port.number) }
	client.release()
	peer.release()
	etcd, err := p.run("etcd", filepath.Join(p.Dir, "etcd.log"),
		"--name", "one", "--data-dir", filepath.Join(p.Dir, "etcd"),
		"--listen-client-urls", at(client), "--advertise-client-urls", at(client),
		"--listen-peer-urls", at(peer), "--initial-advertise-peer-urls", at(peer), "--initial-cluster", "one="+at(peer))
	p.etcd = etcd
	return err
}

// run starts a program as the account that the servers run as.
func (p *Patroni) run(name, log string, args ...string) (*Process, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	return Program{
		Path: path, Args: args, Dir: p.Dir, Log: log, Env: []string{"HOME=" + p.Dir, "PYTHONUNBUFFERED=1"},
		As: p.account.attributes().Credential,
	}.Start()
}

// writeMember writes the configuration of a node's Patroni. JSON is YAML as well.
func (p *Patroni) writeMember(path string, n *Node, rest, etcd int) error {
	type object = map[string]any
	addr := func(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }
	login := object{"username": p.Superuser, "password": p.Password}
	settings := n.settings()
	settings["full_page_writes"] = "on" // pg_rewind insists on it
	for _, own := range []string{"listen_addresses", "port", "cluster_name", "unix_socket_directories"} {
		delete(settings, own) // Patroni's business, but for the last
	}
	text, err := json.Marshal(object{
		"scope": PatroniScope, "name": n.Name,
		"restapi": object{"listen": addr(rest), "connect_address": addr(rest)},
		"etcd3":   object{"host": addr(etcd)},
		"bootstrap": object{
			"dcs": object{
				"ttl": 10, "loop_wait": 1, "retry_timeout": 3, "synchronous_mode": true,
				"postgresql": object{"use_pg_rewind": true, "parameters": settings},
			},
			"initdb": []any{object{"auth": "scram-sha-256"}, object{"locale": "C"}, object{"encoding": "UTF8"}, object{"wal-segsize": "1"}, "no-sync"},
		},
		"postgresql": object{
			"listen": n.Addr(), "connect_address": n.Addr(), "data_dir": n.Dir, "bin_dir": p.BinDir,
			"pgpass":         filepath.Join(p.Dir, n.Name+".pgpass"),
			"authentication": object{"superuser": login, "replication": login, "rewind": login},
			"basebackup":     []any{object{"checkpoint": "fast"}, "no-sync"},
			"parameters":     object{"unix_socket_directories": ""},
			"pg_hba":         []string{"host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256"},
		},
	})
	if err != nil {
		return fmt.Errorf("configuration of %s: %w", n.Name, err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return fmt.Errorf("configuration of %s: %w", n.Name, err)
	}
	return p.account.own(path)
}

// StartMember starts a node's Patroni, which starts the server.
func (p *Patroni) StartMember(n *Node) error {
	i := p.index(n)
	proc, err := p.run("patroni", n.Log, p.configs[i])
	if err != nil {
		return err
	}
	p.members[i] = proc
	return nil
}

func (p *Patroni) index(n *Node) int {
	for i, x := range p.Nodes() {
		if x == n {
			return i
		}
	}
	return -1
}

// KillMember ends a node by SIGKILL, both its Patroni and its server with all
// processes, as if its machine had lost power, and waits until they are gone.
func (p *Patroni) KillMember(n *Node) {
	i := p.index(n)
	if proc := p.members[i]; proc != nil {
		proc.kill()
		p.members[i] = nil
	}
	n.killServer()
}

// killServer kills a server that this process has not started.
func (n *Node) killServer() {
	lines := pidFile(n.Dir)
	if len(lines) == 0 {
		return
	}
	pid, err := strconv.Atoi(lines[0])
	if err != nil || !serves(pid, n.Dir) {
		return
	}
	// Stopped first, it starts no new children while we look for them.
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	all := append(childrenOf(pid), pid)
	for _, x := range all {
		_ = syscall.Kill(x, syscall.SIGKILL)
	}
	for deadline := time.Now().Add(10 * time.Second); anyAlive(all) && time.Now().Before(deadline); {
		<-time.After(pollEvery)
	}
}

// serves reports whether a process is the server of a data folder: its number may
// be another's by now.
func serves(pid int, dir string) bool {
	for _, x := range processesWith(dir) {
		if x == pid {
			return true
		}
	}
	return false
}

// Ctl runs patronictl and returns what it prints.
func (p *Patroni) Ctl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "patronictl", append([]string{"-c", p.configs[0]}, args...)...)
	cmd.Env = ChildEnv("HOME="+p.Dir, "LC_ALL=C.UTF-8") // which its library for commands insists on
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("patronictl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// WaitStreaming waits until every node but the leader is a replica of it, streams on
// its timeline, and one of them is synchronous: until a switchover is possible. It
// takes startTimeout at most.
func (p *Patroni) WaitStreaming(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(10 * pollEvery)
	defer tick.Stop()
	var last error
	for {
		if last = p.streaming(ctx); last == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for replicas that stream: %w", last)
		}
	}
}

var errNotStreaming = errors.New("its walreceiver is not there")

func (p *Patroni) streaming(ctx context.Context) error {
	var answer struct {
		Members []struct {
			Name, Role, State string
			Timeline          int
		}
	}
	err := errors.New("no answer")
	for i := 0; i < len(p.URLs) && err != nil; i++ {
		err = getJSON(ctx, p.URLs[i]+"/cluster", &answer)
	}
	if err != nil {
		return err
	}
	leader, timeline, synced := "", 0, false
	for _, m := range answer.Members {
		if m.Role == "leader" {
			leader, timeline = m.Name, m.Timeline
		}
		synced = synced || m.Role == "sync_standby"
	}
	for _, m := range answer.Members {
		if m.Timeline != timeline || m.Role != "leader" && m.State != "running" && m.State != "streaming" {
			return fmt.Errorf("%s of leader %q on timeline %d is %+v", m.Name, leader, timeline, m)
		}
	}
	if leader == "" || !synced || len(answer.Members) != len(p.Nodes()) {
		return fmt.Errorf("members are %+v", answer.Members)
	}
	for _, n := range p.Nodes() {
		if n.Name != leader {
			if ok, err := n.Value(ctx, "postgres", "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')"); err != nil || ok != "t" {
				return fmt.Errorf("%s does not stream: %w", n.Name, errors.Join(err, errNotStreaming))
			}
		}
	}
	return nil
}

func getJSON(ctx context.Context, url string, to any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(to)
}

// Close ends everything and removes the folder.
func (p *Patroni) Close(ctx context.Context) error {
	for _, proc := range p.members {
		if proc != nil {
			proc.kill() // first all of these, so that none starts a server again
		}
	}
	for _, n := range p.Nodes() {
		n.killServer()
	}
	if p.etcd != nil {
		p.etcd.kill()
	}
	http.DefaultClient.CloseIdleConnections()
	return p.Cluster.Close(ctx)
}

// waitLogin is WaitFor of a server that Patroni is yet to start. It ends with that
// Patroni.
func (p *Patroni) waitLogin(ctx context.Context, n *Node, sql string) error {
	tick := time.NewTicker(5 * pollEvery)
	defer tick.Stop()
	for {
		got, err := n.Value(ctx, "postgres", sql)
		if err == nil && got == "t" {
			return nil
		}
		if err := p.members[p.index(n)].Alive(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: waited in vain for %s: %w", n.Name, sql, errors.Join(context.Cause(ctx), err))
		}
	}
}
