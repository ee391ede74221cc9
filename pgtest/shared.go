package pgtest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"
)

// shared is the cluster that the tests of one package have in common.
var shared struct {
	mu      sync.Mutex
	cluster *Cluster
	err     error
}

// Shared returns one cluster for all tests of the process, a primary with two
// replicas, started when it is first asked for. Tests that stop, promote or
// reconfigure servers take their own by Start. The package's TestMain is to call
// Main; without it the servers end just after the process.
func Shared(t testing.TB) *Cluster {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.cluster == nil && shared.err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		shared.cluster, shared.err = StartCluster(ctx, Options{Replicas: 2})
	}
	if shared.err != nil {
		t.Fatalf("starting the shared PostgreSQL cluster: %v", shared.err)
	}
	return shared.cluster
}

// Main is the body of a TestMain: it runs the tests, closes the shared cluster
// and exits.
func Main(m *testing.M) {
	code := m.Run()
	if err := closeShared(); err != nil {
		fmt.Fprintln(os.Stderr, "closing the shared PostgreSQL cluster:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func closeShared() error {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.cluster != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := shared.cluster.Close(ctx); err != nil {
			return err
		}
		shared.cluster = nil
	}
	return RemoveTemplates()
}
