package bench

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"pgproxy/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// TestMeasure runs everything but the comparison itself on a real cluster: direct
// clients, and PgBouncer where it is installed.
func TestMeasure(t *testing.T) {
	c := pgtest.Start(t, pgtest.Options{Replicas: 1})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	opt := Default()
	opt.Rounds, opt.Seconds, opt.Clients, opt.Modes, opt.Scale = 1, 1, []int{2}, []string{"extended"}, 1
	opt.Peers, opt.Sample, opt.Replicas = []string{Direct}, 1, 1
	proxies := 0
	if _, err := pgbouncerPeer(ctx, ""); err == nil {
		proxies++
		opt.Idle, opt.Peers = 20, append(opt.Peers, PgBouncer)
	}
	census := pgtest.NewCensus(t, c.Nodes()...)
	res, err := measure(ctx, c, opt, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	census.AssertBaseline()
	if res.Failed() {
		t.Errorf("a peer failed:\n%s", res.Markdown())
	}
	if len(res.Workloads) != 1 || len(res.Workloads[0].Rows) != 1+proxies || len(res.Idle) != proxies {
		t.Fatalf("missing in the result:\n%s", res.Markdown())
	}
	for _, row := range res.Workloads[0].Rows {
		if len(row.Rounds) != 1 || row.TPS <= 0 || row.P50Millis <= 0 || row.P99Millis < row.P50Millis {
			t.Errorf("%s: %+v", row.Peer, row)
		}
	}
	left, err := filepath.Glob(filepath.Join(c.Dir, "bench", "log.*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestBrokenPeer: a proxy that does not start is an error in the report, and the
// others are measured all the same.
func TestBrokenPeer(t *testing.T) {
	c := pgtest.Start(t, pgtest.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	opt := Default()
	opt.Rounds, opt.Seconds, opt.Clients, opt.Modes, opt.Scale, opt.Replicas = 1, 1, []int{2}, []string{"simple"}, 1, 0
	opt.Peers = []string{PgProxy, Direct}
	opt.PgProxy = shell(t, `[ "$1" = version ] && { echo "pgproxy 1"; exit; }; echo no such key; exit 4`)
	res, err := measure(ctx, c, opt, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	rows := res.Workloads[0].Rows
	if rows[0].Peer != PgProxy {
		t.Fatalf("first row: %+v", rows[0])
	}
	checkError(t, errors.New(rows[0].Error), "no such key")
	if rows[1].Error != "" || len(rows[1].Rounds) != 1 {
		t.Errorf("direct: %+v", rows[1])
	}
}

func TestEndOfContextEndsTheRun(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	opt := Default()
	opt.Peers = []string{Direct}
	res, err := Run(ctx, opt, t.Output())
	if !errors.Is(err, context.Canceled) || res != nil {
		t.Errorf("result %v, error %v", res, err)
	}
}
