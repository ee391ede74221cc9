package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestControl: the control socket answers, and nothing that is sent there harms it.
func TestControl(t *testing.T) {
	c, err := newControl(func(_ context.Context, request string) (string, error) {
		if text, bad := strings.CutPrefix(request, "bad "); bad {
			return "", errors.New(text + "\n\"second\" line")
		}
		return "<" + request + ">", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	t.Cleanup(func() {
		if !closed {
			c.close()
		}
	})
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	for range 2 * controlConns { // garbage, and those who say nothing
		nc, err := net.Dial("unix", controlName(os.Getpid()))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = nc.Write(make([]byte, 2*maxRequest))
		_ = nc.Close()
	}
	if got, err := askProcess(ctx, os.Getpid(), "one two"); got != "<one two>" || err != nil {
		t.Errorf("answer %q, %v", got, err)
	}
	if _, err := askProcess(ctx, os.Getpid(), "bad luck"); err == nil || err.Error() != "luck\n\"second\" line" {
		t.Errorf("error %v", err)
	}

	// Whoever has taken another process's name is not believed.
	const nobody = 1 << 30
	l, err := net.Listen("unix", controlName(nobody))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := askProcess(ctx, nobody, "x"); !errors.Is(err, errNoControl) {
		t.Errorf("another process: %v", err)
	}
	_ = l.Close()

	if os.Getuid() == 0 {
		if got, err := askAs(65534, os.Getpid(), "x\n"); got != "" || err != nil {
			t.Errorf("another user was answered %q, %v", got, err)
		}
	}

	// One who says nothing does not hold up the end.
	nc, err := net.Dial("unix", controlName(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	c.close()
	closed = true
	if _, err := askProcess(ctx, os.Getpid(), "x"); !errors.Is(err, errNoControl) {
		t.Errorf("after the end: %v", err)
	}
}

// askAs sends a request as another user of the system and returns all that comes.
func askAs(uid, pid int, request string) (answer string, err error) {
	done := make(chan struct{})
	go func() { // its thread has another user then, and ends with it
		defer close(done)
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			err = errno
			return
		}
		var fd int
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: controlName(pid)}); err != nil {
			return
		}
		_, _ = unix.Write(fd, []byte(request)) // it may be closed already
		buf := make([]byte, 100)
		n, rerr := unix.Read(fd, buf)
		if rerr != nil && !errors.Is(rerr, unix.ECONNRESET) {
			err = fmt.Errorf("read: %w", rerr)
		}
		answer = string(buf[:max(n, 0)])
	}()
	<-done
	return answer, err
}
