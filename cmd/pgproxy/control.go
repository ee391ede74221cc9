package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A process has a control socket, an abstract one that its id names. Who runs as
// the same user of the system, or as root, may ask one thing there, in a line:
//
//	upgrade            start the program anew and hand the listeners over
//	cancel PID SECRET  a cancel request that has come to another process
//
// and is answered with "ok", and what there is to say, or "error" and why.

// Bounds of the control socket.
const (
	controlConns   = 64 // at once; others wait
	controlTimeout = 5 * time.Second
	maxRequest     = 1 << 10 // bytes of a line
)

func controlName(pid int) string { return "@pgproxy/" + strconv.Itoa(pid) }

// control serves the control socket. Its goroutines are waited for by close.
type control struct {
	// Set at construction.
	l      net.Listener
	answer func(ctx context.Context, request string) (string, error)
	ctx    context.Context
	stop   context.CancelFunc
	places chan struct{}
	goes   sync.WaitGroup
}

func newControl(answer func(ctx context.Context, request string) (string, error)) (*control, error) {
	l, err := net.Listen("unix", controlName(os.Getpid()))
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &control{l: l, answer: answer, ctx: ctx, stop: stop, places: make(chan struct{}, controlConns)}
	c.goes.Go(c.accept)
	return c, nil
}

func (c *control) accept() {
	for {
		c.places <- struct{}{}
		nc, err := c.l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			<-c.places
			select {
			case <-time.After(time.Second):
			case <-c.ctx.Done():
			}
			continue
		}
		c.goes.Go(func() {
			defer func() { _ = nc.Close(); <-c.places }()
			c.serve(nc)
		})
	}
}

func (c *control) serve(nc net.Conn) {
	peer, err := peerOf(nc)
	if err != nil || peer.Uid != 0 && int(peer.Uid) != os.Getuid() {
		return
	}
	_ = nc.SetReadDeadline(time.Now().Add(controlTimeout))
	stop := context.AfterFunc(c.ctx, func() { _ = nc.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReaderSize(nc, maxRequest).ReadSlice('\n')
	if err != nil {
		return
	}
	text, err := c.answer(c.ctx, strings.TrimSuffix(string(line), "\n"))
	word := "ok"
	if err != nil {
		word, text = "error", err.Error()
	}
	_ = nc.SetWriteDeadline(time.Now().Add(controlTimeout))
	_, _ = fmt.Fprintf(nc, "%s %q\n", word, text)
}

func (c *control) close() {
	c.stop()
	_ = c.l.Close()
	c.goes.Wait()
}

func peerOf(nc net.Conn) (cred *syscall.Ucred, err error) {
	raw, err := nc.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	return cred, errors.Join(cerr, err)
}

// errNoControl says that a process cannot be asked: it has ended.
var errNoControl = errors.New("there is no pgproxy that could be asked")

// askProcess asks a process and returns its answer.
func askProcess(ctx context.Context, pid int, request string) (string, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", controlName(pid))
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "", fmt.Errorf("process %d: %w", pid, errNoControl)
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = nc.Close() }()
	// Anybody may have taken the name.
	if peer, err := peerOf(nc); err != nil || int(peer.Pid) != pid {
		return "", fmt.Errorf("process %d: %w", pid, errNoControl)
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := fmt.Fprintln(nc, request); err != nil {
		return "", err
	}
	var word, text string
	if _, err := fmt.Fscanf(nc, "%s %q\n", &word, &text); err != nil {
		return "", fmt.Errorf("process %d has not answered: %w", pid, errors.Join(err, context.Cause(ctx)))
	}
	if word != "ok" {
		return "", errors.New(text)
	}
	return text, nil
}

// kin are the processes that the listeners have come from, or gone to.
type kin struct {
	mu   sync.Mutex
	pids []int
}

func (k *kin) add(pids ...int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pids = append(k.pids, pids...)
}

func (k *kin) list() []int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]int(nil), k.pids...)
}

func (k *kin) drop(pid int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, p := range k.pids {
		if p == pid {
			k.pids = append(k.pids[:i], k.pids[i+1:]...)
			return
		}
	}
}

// cancel asks all of them and returns when each has answered. They pass it on to
// nobody.
func (k *kin) cancel(ctx context.Context, pid uint32, secret []byte) (known bool) {
	answers := make(chan bool)
	pids := k.list()
	for _, p := range pids {
		go func() { // ends with ctx at the latest
			_, err := askProcess(ctx, p, fmt.Sprintf("cancel %d %s", pid, hex.EncodeToString(secret)))
			if errors.Is(err, errNoControl) {
				k.drop(p)
			}
			answers <- err == nil
		}()
	}
	for range pids {
		known = <-answers || known
	}
	return known
}

var errUnknownKey = errors.New("unknown key")

// request answers what the control socket is asked.
func (a *app) request(ctx context.Context, line string) (string, error) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "upgrade":
		pid, err := a.upgrade(ctx)
		return strconv.Itoa(pid), err
	case "cancel":
		number, key, _ := strings.Cut(rest, " ")
		pid, err := strconv.ParseUint(number, 10, 32)
		secret, herr := hex.DecodeString(key)
		if err := errors.Join(err, herr); err != nil {
			return "", err
		}
		if !a.server.Cancel(uint32(pid), secret) {
			return "", errUnknownKey
		}
		return "", nil
	}
	return "", fmt.Errorf("unknown request %q", word)
}
