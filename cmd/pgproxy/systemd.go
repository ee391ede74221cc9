package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"pgproxy/proxy"
)

// What systemd and its like agree on with the programs that they start; see
// sd_notify(3) and sd_listen_fds(3).

// notify tells the service manager of a state, as "READY=1", if there is one.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte(state)); err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	return nil
}

// reloadingState says that a reload begins, with the time that Type=notify-reload
// asks for.
func reloadingState() string {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // never fails for this clock
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", ts.Nano()/1000)
}

// firstListenFD is SD_LISTEN_FDS_START.
const firstListenFD = 3

// givenListeners takes over the sockets that the service manager has opened for
// this process.
func givenListeners() ([]proxy.Socket, error) {
	pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID"))
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if pid != os.Getpid() || n <= 0 {
		return nil, nil
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // they are not for programs that this one starts
	}
	var ls []proxy.Socket
	for fd := firstListenFD; fd < firstListenFD+n; fd++ {
		l, err := listenerOf(fd)
		if err != nil {
			closeAll(ls)
			return nil, fmt.Errorf("LISTEN_FDS: %w", err)
		}
		ls = append(ls, proxy.Socket{Listener: l, Name: proxy.Given})
	}
	return ls, nil
}

// listenerOf makes a listener of a descriptor, which it takes over.
func listenerOf(fd int) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), "listener "+strconv.Itoa(fd))
	if f == nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, os.ErrInvalid)
	}
	defer func() { _ = f.Close() }()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	return l, nil
}

func closeAll(ls []proxy.Socket) {
	for _, l := range ls {
		_ = l.Close()
	}
}
