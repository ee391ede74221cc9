package pgtest

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// childrenOf returns the process ids of pid's children.
func childrenOf(pid int) []int {
	var out []int
	for _, p := range processes() {
		if parent, state := parentOf(p); parent == pid && state != 'Z' {
			out = append(out, p)
		}
	}
	return out
}

// parentOf reads a process's parent and state; 0 when there is no such process.
func parentOf(pid int) (parent int, state byte) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0
	}
	// The second field is the name in parentheses and may hold anything.
	i := bytes.LastIndexByte(text, ')')
	if i < 0 {
		return 0, 0
	}
	f := strings.Fields(string(text[i+1:]))
	if len(f) < 2 {
		return 0, 0
	}
	parent, err = strconv.Atoi(f[1])
	if err != nil {
		return 0, 0
	}
	return parent, f[0][0]
}

// anyAlive reports whether one of the processes is there and no zombie.
func anyAlive(pids []int) bool {
	for _, p := range pids {
		if parent, state := parentOf(p); parent != 0 && state != 'Z' {
			return true
		}
	}
	return false
}

// processes lists the process ids of the system.
func processes() []int {
	names, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	var out []int
	for _, name := range names {
		if pid, err := strconv.Atoi(filepath.Base(name)); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// processesWith lists the processes whose command line holds text.
func processesWith(text string) []int {
	var out []int
	for _, pid := range processes() {
		line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if err == nil && bytes.Contains(line, []byte(text)) {
			out = append(out, pid)
		}
	}
	return out
}

// removeSharedMemory removes the small System V segment that a killed server
// leaves behind; its id stands in the pid file, which a server that ended in
// order has removed.
func removeSharedMemory(dir string) {
	lines := pidFile(dir)
	if len(lines) < 7 {
		return
	}
	f := strings.Fields(lines[6])
	if len(f) != 2 {
		return
	}
	id, err := strconv.Atoi(f[1])
	if err != nil {
		return
	}
	const ipcRemove = 0 // IPC_RMID
	_, _, _ = syscall.Syscall(syscall.SYS_SHMCTL, uintptr(id), ipcRemove, 0)
}
