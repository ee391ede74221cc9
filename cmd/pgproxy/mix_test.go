package main

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"
)

var (
	mixed = regexp.MustCompile(`number of transactions actually processed: (\d+)`)
	wrote = regexp.MustCompile(`(?s)<builtin: TPC-B.*? - (\d+) transactions`)
)

// TestPgbenchMix: nine reads to one TPC-B transaction, over replicas, at every level
// of consistency and with blocks that begin on a replica: every transaction is there
// once, and all sums agree.
func TestPgbenchMix(t *testing.T) {
	c := appCluster(t)
	const clients, each = 20, 60
	for _, lines := range []string{
		"", "transaction_reads = \"until_write\"\n", "consistency = \"global\"\ncausal_wait = \"50ms\"\ntransaction_reads = \"until_write\"\n",
		"read_write_split = \"shadow\"\nshadow_ratio = 0.5\n",
	} {
		t.Run(lines, func(t *testing.T) {
			a := startApp(t, c, "", lines)
			program(t, c, c.Primary.Port, "pgbench", "-i", "-q", "-s", "2")
			if err := c.WaitCaughtUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			done := 0
			for _, mode := range []string{"simple", "prepared"} {
				out := program(t, c, a.port(), "pgbench", "-n", "-M", mode, "-c", strconv.Itoa(clients), "-j", "2", "-t", strconv.Itoa(each),
					"-b", "tpcb-like@1", "-b", "select-only@9")
				m, w := mixed.FindStringSubmatch(out), wrote.FindStringSubmatch(out)
				if m == nil || m[1] != strconv.Itoa(clients*each) || w == nil {
					t.Fatalf("pgbench did not process %d transactions:\n%s", clients*each, out)
				}
				n, _ := strconv.Atoi(w[1])
				done += n
			}
			sums, err := c.Primary.Query(t.Context(), "app", `SELECT (SELECT count(*) FROM pgbench_history),
				(SELECT coalesce(sum(delta), 0) FROM pgbench_history) = (SELECT sum(abalance) FROM pgbench_accounts),
				(SELECT coalesce(sum(delta), 0) FROM pgbench_history) = (SELECT sum(tbalance) FROM pgbench_tellers),
				(SELECT coalesce(sum(delta), 0) FROM pgbench_history) = (SELECT sum(bbalance) FROM pgbench_branches)`)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := fmt.Sprint(sums[0]), fmt.Sprintf("[%d t t t]", done); got != want {
				t.Errorf("history and sums: got %s, want %s", got, want)
			}
			for _, st := range a.server.Shadow() {
				if st.Differs+st.Failed > 0 {
					t.Errorf("shadow: %+v", st)
				}
			}
		})
	}
}
