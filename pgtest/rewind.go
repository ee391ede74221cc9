package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Rewind makes a stopped node, whose history has parted from that of a running
// primary, a standby of it with pg_rewind: the quick way back for a primary that was
// replaced. Start starts it. The cluster's Settings must have wal_log_hints and
// full_page_writes on.
func (n *Node) Rewind(ctx context.Context, from *Node) error {
	n.op.Lock()
	defer n.op.Unlock()
	if n.process() != nil {
		return fmt.Errorf("rewind %s: it runs", n.Name)
	}
	// Until its first checkpoint a new primary's control file has the old timeline.
	if err := from.Exec(ctx, "postgres", "CHECKPOINT"); err != nil {
		return fmt.Errorf("rewind %s: %w", n.Name, err)
	}
	c := n.cluster
	removeSharedMemory(n.Dir)
	err := runProgram(ctx, c.account, c.Dir, nil, filepath.Join(c.BinDir, "pg_rewind"), "-D", n.Dir, "--no-sync",
		"--source-server", fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=postgres", from.Host, from.Port, c.Superuser, c.Password))
	if err != nil {
		return fmt.Errorf("rewind %s: %w", n.Name, err)
	}
	// The configuration has become that of the other node.
	if err := os.Truncate(filepath.Join(n.Dir, "postgresql.auto.conf"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("rewind %s: %w", n.Name, err)
	}
	if err := n.follow(from); err != nil {
		return err
	}
	return n.writeConfig()
}
