package bench

import (
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParseSummary(t *testing.T) {
	const new15 = `pgbench (15.18)
transaction type: <builtin: select only>
scaling factor: 10
query mode: simple
number of clients: 16
number of threads: 2
maximum number of tries: 1
duration: 5 s
number of transactions actually processed: 219334
number of failed transactions: 0 (0.000%)
latency average = 0.364 ms
initial connection time = 12.345 ms
tps = 43937.123456 (without initial connection time)
`
	const old13 = `number of clients: 4
number of transactions actually processed: 1000/1000
latency average = 0.1 ms
tps = 900.5 (including connections establishing)
tps = 1000.25 (excluding connections establishing)
`
	for _, tt := range []struct {
		name, text string
		want       summary
		wrong      string
	}{
		{name: "15", text: new15, want: summary{219334, 0, 43937.123456}},
		{name: "13", text: old13, want: summary{1000, 0, 1000.25}},
		{name: "failed", text: strings.Replace(new15, "failed transactions: 0", "failed transactions: 7", 1), want: summary{219334, 7, 43937.123456}},
		{name: "nothing", text: "", wrong: "no number of transactions"},
		{name: "no tps", text: new15[:strings.Index(new15, "tps")], wrong: "no tps"},
		{
			name:  "no transaction",
			text:  "number of transactions actually processed: 0\nnumber of failed transactions: 0 (NaN%)\n",
			wrong: "no transaction",
		},
		{name: "no number", text: strings.Replace(new15, "219334", "many", 1), wrong: "invalid syntax"},
		{name: "no number of tps", text: strings.Replace(new15, "43937.123456", "many", 1), wrong: "invalid syntax"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseSummary(tt.text)
			checkError(t, err, tt.wrong)
			if tt.wrong == "" && got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestParseLog(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []int64
		wrong      string
	}{
		{name: "empty"},
		{name: "plain", text: "0 1 463 0 1700000000 123456\n1 1 2000 0 1700000000 123460\n", want: []int64{463, 2000}},
		{name: "more fields", text: "0 1 463 0 1700000000 123456 12 0\n", want: []int64{463}},
		{name: "no latency", text: "0 1 failed 0 1 2\n0 2 skipped 0 1 2\n0 3 deadlock 0 1 2\n0 4 7 0 1 2\n", want: []int64{7}},
		{name: "cut", text: "0 1 463 0 1 2\n0 2 46", want: []int64{463}, wrong: "line 2: 3 fields"},
		{name: "word", text: "0 1 fast 0 1 2\n", wrong: "line 1: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseLog(strings.NewReader(tt.text), nil)
			checkError(t, err, tt.wrong)
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestReadLogs(t *testing.T) {
	dir := t.TempDir()
	prefix := filepath.Join(dir, "log")
	for name, text := range map[string]string{
		"log.77": "0 1 30 0 1 2\n0 2 10 0 1 2\n", "log.77.1": "1 1 20 0 1 2\n", "other.77": "no log\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := readLogs(prefix)
	checkError(t, err, "")
	if want := []int64{10, 20, 30}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
	_, err = readLogs(prefix)
	checkError(t, err, "no transaction")
}

func TestPercentile(t *testing.T) {
	hundred := make([]int64, 100)
	for i := range hundred {
		hundred[i] = int64(i + 1)
	}
	for _, tt := range []struct {
		sorted  []int64
		percent float64
		want    int64
	}{
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 99.5, 100},
		{hundred, 100, 100},
		{hundred, 0, 1},
		{[]int64{5}, 50, 5},
		{[]int64{5}, 99, 5},
		{[]int64{1, 2}, 50, 1},
		{[]int64{1, 2, 3}, 50, 2},
		{[]int64{1, 2, 3}, 99, 3},
	} {
		if got := percentile(tt.sorted, tt.percent); got != tt.want {
			t.Errorf("%g of %d values: %d, want %d", tt.percent, len(tt.sorted), got, tt.want)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{3, 1}, 2},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		before := append([]float64(nil), tt.values...)
		if got := median(tt.values); math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("%v: %g, want %g", tt.values, got, tt.want)
		}
		if !reflect.DeepEqual(before, append([]float64(nil), tt.values...)) {
			t.Errorf("%v: the values were moved", before)
		}
	}
}

func TestArguments(t *testing.T) {
	for _, tt := range []struct {
		w    Workload
		rate float64
		want string
	}{
		{Workload{"select", "extended", 64}, 0.2, "-n -S -M extended -c 64 -j 2 -T 5 --log --log-prefix=F --sampling-rate=0.2"},
		{Workload{"tpcb", "simple", 16}, 1, "-n -M simple -c 16 -j 2 -T 5 --log --log-prefix=F"},
	} {
		got := strings.Join(append(tt.w.args(5), logArgs("F", tt.rate)...), " ")
		if got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

// checkError fails unless err says so much, or is nil if that is "".
func checkError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("unexpected error: %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("error %v, want one with %q", err, want)
	}
}
