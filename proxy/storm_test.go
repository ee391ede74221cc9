package proxy_test

import (
	"bufio"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// TestLoginStorm: many clients log in by SCRAM at once, each tenth with a wrong
// password. Those who may come in do, the others do not, and who is in can work
// meanwhile. PGPROXY_STORM=5000 with -v measures how well: p99 of the established
// clients before and during the storm. The clients of the storm are a process of
// their own.
func TestLoginStorm(t *testing.T) {
	c := realCluster(t)
	n, measured := 500, false
	if s := os.Getenv("PGPROXY_STORM"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
		measured = true
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil && int(limit.Cur)-500 < n {
		t.Logf("%d logins, as only %d files may be open", int(limit.Cur)-500, limit.Cur)
		n = int(limit.Cur) - 500
	}
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 4\n"})
	stop := make(chan struct{})
	var phase atomic.Int32
	var took [2][]time.Duration
	var mu sync.Mutex
	var working sync.WaitGroup
	for range 4 {
		in := h.Client(t)
		working.Go(func() {
			var mine [2][]time.Duration
			for {
				select {
				case <-stop:
					mu.Lock()
					for i := range took {
						took[i] = append(took[i], mine[i]...)
					}
					mu.Unlock()
					return
				case <-time.After(time.Millisecond): // they do not fill the machine
				}
				p, begun := phase.Load(), time.Now()
				if got := in.Query("SELECT 1"); got != "T D(1) C(SELECT 1) Z(I)" {
					t.Errorf("an established client got %s", got)
				}
				mine[p] = append(mine[p], time.Since(begun))
			}
		})
	}
	storm := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestStormClients$")
	storm.Env = append(os.Environ(), fmt.Sprintf("PGPROXY_STORM_OF=%d@%s", n, h.Addr))
	storm.Stderr = os.Stderr
	command, err := storm.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := storm.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := storm.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	line := func(prefix string) string {
		for lines.Scan() {
			if rest, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				return rest
			}
		}
		t.Fatalf("the storm ends without %q", prefix)
		return ""
	}
	line("ready")
	if measured {
		<-time.After(3 * time.Second)
	}
	phase.Store(1)
	begun := time.Now()
	fmt.Fprintln(command, "go")
	result := line("storm: ")
	lasted := time.Since(begun)
	close(stop)
	working.Wait()
	_ = command.Close()
	if err := storm.Wait(); err != nil {
		t.Error(err)
	}
	if want := fmt.Sprintf("%d in, %d refused, 0 neither", n-(n+9)/10, (n+9)/10); result != want {
		t.Errorf("%s; want %s", result, want)
	}
	if measured {
		t.Logf("%d logins in %v; p99 of established clients: %v before (%d statements), %v during (%d)",
			n, lasted.Round(time.Millisecond), p99(took[0]), len(took[0]), p99(took[1]), len(took[1]))
	}
	if len(took[1]) == 0 {
		t.Error("nobody has worked meanwhile")
	}
}

// TestStormClients is the other process.
func TestStormClients(t *testing.T) {
	count, addr, ok := strings.Cut(os.Getenv("PGPROXY_STORM_OF"), "@")
	if !ok {
		t.Skip("TestLoginStorm runs it") // and nobody else
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		t.Fatal(err)
	}
	known := new(saltedPasswords)
	for _, who := range [][2]string{{testUser, testPassword}, {otherUser, otherSecret}, {testUser, "wrong"}, {otherUser, "wrong"}} {
		nc, _, err := known.login(addr, who[0], who[1])
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.Close()
	}
	fmt.Println("ready")
	input := bufio.NewReader(os.Stdin)
	if _, err := input.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	var in, refused, neither atomic.Int64
	var storm sync.WaitGroup
	leave := make(chan struct{})
	var left sync.WaitGroup
	for i := range n {
		storm.Add(1)
		left.Go(func() {
			user, password := testUser, testPassword
			if i%2 == 1 {
				user, password = otherUser, otherSecret
			}
			if i%10 == 0 {
				password = "wrong"
			}
			nc, good, err := known.login(addr, user, password)
			switch {
			case err != nil || good == (password == "wrong"):
				neither.Add(1)
				t.Errorf("%s with %q: in %t, %v", user, password, good, err)
			case good:
				in.Add(1)
			default:
				refused.Add(1)
			}
			storm.Done()
			<-leave
			if nc != nil {
				_ = nc.Close()
			}
		})
	}
	storm.Wait()
	fmt.Printf("storm: %d in, %d refused, %d neither\n", in.Load(), refused.Load(), neither.Load())
	_, _ = input.ReadString('\n') // the end of it
	close(leave)
	left.Wait()
}

func p99(took []time.Duration) time.Duration {
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[len(took)*99/100].Round(10 * time.Microsecond)
}

// saltedPasswords is what clients remember between logins: the dear part of SCRAM,
// which would be measured otherwise.
type saltedPasswords struct{ known sync.Map }

func (s *saltedPasswords) of(password, salt string, iterations int) []byte {
	key := password + "\x00" + salt
	one, _ := s.known.LoadOrStore(key, sync.OnceValue(func() []byte {
		p, _ := pbkdf2.Key(sha256.New, password, []byte(salt), iterations, sha256.Size)
		return p
	}))
	return one.(func() []byte)()
}

// login logs a client in and tells whether it was let in.
func (s *saltedPasswords) login(addr, user, password string) (nc net.Conn, in bool, err error) {
	if nc, err = net.Dial("tcp", addr); err != nil {
		return nil, false, err
	}
	_ = nc.SetDeadline(time.Now().Add(2 * time.Minute))
	r := bufio.NewReaderSize(nc, 1<<10)
	const first = "n=,r=abcdefghijklmnop"
	if _, err := nc.Write(pgtest.StartupMessage(wire.Protocol30, "user", user, "database", "app")); err != nil {
		return nc, false, err
	}
	for {
		var head [5]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nc, false, err
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(r, body); err != nil {
			return nc, false, err
		}
		switch head[0] {
		case wire.ErrorResponse:
			if strings.Contains(string(body), "C"+wire.CodeInvalidPassword) {
				return nc, false, nil
			}
			return nc, false, fmt.Errorf("%q", body)
		case wire.ReadyForQuery:
			return nc, true, nil
		case wire.Authentication:
			switch wire.AuthCode(binary.BigEndian.Uint32(body)) {
			case wire.AuthSASL:
				_, err = nc.Write(saslInitial("n,," + first))
			case wire.AuthSASLContinue:
				_, err = nc.Write(pgtest.Message(wire.Password, []byte(s.final(first, string(body[4:]), password))))
			}
			if err != nil {
				return nc, false, err
			}
		}
	}
}

// final makes the client-final-message.
func (s *saltedPasswords) final(first, serverFirst, password string) string {
	f := strings.Split(serverFirst, ",")
	salt, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(f[1], "s="))
	iterations, _ := strconv.Atoi(strings.TrimPrefix(f[2], "i="))
	sign := func(key []byte, text string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	key := sign(s.of(password, string(salt), iterations), "Client Key")
	stored := sha256.Sum256(key)
	without := "c=biws," + f[0]
	for i, b := range sign(stored[:], first+","+serverFirst+","+without) {
		key[i] ^= b
	}
	return without + ",p=" + base64.StdEncoding.EncodeToString(key)
}
