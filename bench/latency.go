package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// readLogs reads the latencies, in microseconds, from all files of pgbench that
// begin with prefix, sorts them, and removes the files.
func readLogs(prefix string) ([]int64, error) {
	names, err := filepath.Glob(prefix + ".*")
	if err != nil {
		return nil, fmt.Errorf("logs of pgbench: %w", err)
	}
	var all []int64
	for _, name := range names {
		if all, err = readLog(name, all); err != nil {
			return nil, err
		}
		if err := os.Remove(name); err != nil {
			return nil, fmt.Errorf("logs of pgbench: %w", err)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("logs of pgbench: no transaction in them")
	}
	slices.Sort(all)
	return all, nil
}

func readLog(name string, to []int64) ([]int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return to, fmt.Errorf("logs of pgbench: %w", err)
	}
	defer f.Close()
	to, err = parseLog(f, to)
	if err != nil {
		err = fmt.Errorf("logs of pgbench: %s: %w", filepath.Base(name), err)
	}
	return to, err
}

// parseLog appends the latency of each transaction of a log to a slice. A line is
//
//	client_id transaction_no time script_no time_epoch time_us ...
//
// where time is microseconds, or a word for a transaction that failed or was
// skipped, which has no latency.
func parseLog(r io.Reader, to []int64) ([]int64, error) {
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		f := strings.Fields(lines.Text())
		if len(f) < 6 {
			return to, fmt.Errorf("line %d: %d fields, want 6 at least", n, len(f))
		}
		us, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			if slices.Contains([]string{"failed", "skipped", "serialization", "deadlock"}, f[2]) {
				continue
			}
			return to, fmt.Errorf("line %d: %w", n, err)
		}
		to = append(to, us)
	}
	return to, lines.Err()
}

// percentile is the smallest value that so many percent of the sorted values do
// not exceed. There must be a value.
func percentile(sorted []int64, percent float64) int64 {
	i := int(math.Ceil(percent/100*float64(len(sorted)))) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

// median is the middle of the values, or between the two in the middle; 0 of
// none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	m := len(s) / 2
	if len(s)%2 == 1 {
		return s[m]
	}
	return (s[m-1] + s[m]) / 2
}
