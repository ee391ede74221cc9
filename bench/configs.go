package bench

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// site is where a peer is to run and what it stands in front of.
type site struct {
	dir        string // of its own
	port       int    // for clients
	http       int    // for metrics, if it has any
	pool       int    // server connections for each server
	maxClients int
	children   int    // clients of the workload, for who has a process for each
	auth       string // of clients: trust or scram-sha-256
	servers    []int  // ports of the servers on 127.0.0.1, the primary's first
	prepared   bool   // follows prepared statements
}

// userlist is the file with the one login, in PgBouncer's format, which pgproxy
// reads too.
func userlist() string { return strconv.Quote(login) + " " + strconv.Quote(password) + "\n" }

// pgproxyConfig leaves everything that does not have to differ as it is by
// default: metrics, health checks and prepared statements are on.
func pgproxyConfig(s site) string {
	var servers []string
	for _, port := range s.servers {
		servers = append(servers, fmt.Sprintf("{ host = %q, port = %d }", loopback, port))
	}
	return fmt.Sprintf(`[proxy]
listen_addr = %q
listen_port = %d
http_listen = "%s:%d"
auth_type = %q
auth_file = %q
default_pool_size = %d
max_client_conn = %d

[databases.%s]
dbname = %q
servers = [%s]
user = %q
password = %q
`, loopback, s.port, loopback, s.http, s.auth, filepath.Join(s.dir, "userlist.txt"), s.pool, s.maxClients,
		database, database, strings.Join(servers, ", "), login, password)
}

// pgbouncerConfig knows one server only, so that is the primary.
func pgbouncerConfig(s site) string {
	text := fmt.Sprintf(`[databases]
%s = host=%s port=%d dbname=%s user=%s password=%s

[pgbouncer]
listen_addr = %s
listen_port = %d
unix_socket_dir =
auth_type = %s
auth_file = %s
pool_mode = transaction
default_pool_size = %d
max_client_conn = %d
`, database, loopback, s.servers[0], database, login, password, loopback, s.port, s.auth,
		filepath.Join(s.dir, "userlist.txt"), s.pool, s.maxClients)
	if s.prepared {
		text += "max_prepared_statements = 200\n" // the default of pgproxy, and of PgBouncer from 1.24
	}
	return text
}

// pgpoolConfig balances reads over the replicas, as pgproxy does by default, and
// leaves out what has no part in it: failover, health checks, the query cache.
func pgpoolConfig(s site) string {
	var b strings.Builder
	fmt.Fprintf(&b, `backend_clustering_mode = 'streaming_replication'
listen_addresses = '%s'
port = %d
pcp_listen_addresses = ''
socket_dir = '%s'
pcp_socket_dir = '%s'
work_dir = '%s'
pid_file_name = '%s'
logdir = '%s'
log_min_messages = warning
enable_pool_hba = on
pool_passwd = '%s'
num_init_children = %d
max_pool = 1
child_life_time = 0
client_idle_limit = 0
load_balance_mode = on
failover_on_backend_error = off
memory_cache_enabled = off
health_check_period = 0
sr_check_period = 1
sr_check_user = '%s'
sr_check_password = '%s'
sr_check_database = '%s'
`, loopback, s.port, s.dir, s.dir, s.dir, filepath.Join(s.dir, "pgpool.pid"), s.dir, filepath.Join(s.dir, "pool_passwd"), s.children,
		login, password, database)
	for i, port := range s.servers {
		weight := 1
		if i == 0 && len(s.servers) > 1 {
			weight = 0
		}
		fmt.Fprintf(&b, "backend_hostname%d = '%s'\nbackend_port%d = %d\nbackend_weight%d = %d\nbackend_flag%d = 'DISALLOW_TO_FAILOVER'\n",
			i, loopback, i, port, i, weight, i)
	}
	return b.String()
}

// writeFiles writes a peer's configuration and its userlist into its folder,
// which it makes, and gives them to the account that the peer runs as.
func (i *instance) writeFiles(name, text string) error {
	if err := os.Mkdir(i.site.dir, 0o700); err != nil {
		return fmt.Errorf("configuration of %s: %w", i.peer.name, err)
	}
	files := map[string]string{name: text, "userlist.txt": userlist()}
	maps.Copy(files, i.peer.more)
	for file, content := range files {
		path := filepath.Join(i.site.dir, file)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return fmt.Errorf("configuration of %s: %w", i.peer.name, err)
		}
		if err := i.give(path); err != nil {
			return fmt.Errorf("configuration of %s: %w", i.peer.name, err)
		}
	}
	return i.give(i.site.dir)
}

func (i *instance) give(path string) error {
	if i.as == nil {
		return nil
	}
	return os.Chown(path, int(i.as.Uid), int(i.as.Gid))
}
