package bench

import (
	"os"
	"runtime"
	"strconv"
	"strings"
)

// Host is the machine that the run was on.
type Host struct {
	Cores     int    `json:"cores"`
	CPU       string `json:"cpu"`
	MemoryMiB int64  `json:"memory_mib"`
	Kernel    string `json:"kernel"`
	Go        string `json:"go"` // that built the benchmark, and pgproxy unless that was given
}

// thisHost says what can be found out; the rest stays empty.
func thisHost() Host {
	h := Host{Cores: runtime.NumCPU(), Go: runtime.Version()}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		h.Kernel = strings.TrimSpace(string(text))
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		h.CPU = field(string(text), "model name")
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		kib, _, _ := strings.Cut(field(string(text), "MemTotal"), " ")
		if n, err := strconv.ParseInt(kib, 10, 64); err == nil {
			h.MemoryMiB = n / 1024
		}
	}
	return h
}

// field is the value of the first line "name: value".
func field(text, name string) string {
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
