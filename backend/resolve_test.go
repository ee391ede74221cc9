package backend

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"
)

func TestResolver(t *testing.T) {
	answer, fail := []string{"10.0.0.1"}, error(nil)
	asked := 0
	hang := false
	r := &Resolver{Lookup: func(ctx context.Context, host string) ([]string, error) {
		asked++
		if hang {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return answer, fail
	}}
	see := func(ttl time.Duration, want string) {
		t.Helper()
		got, err := r.Addrs(t.Context(), "db", ttl)
		if err != nil || !slices.Equal(got, []string{want}) {
			t.Errorf("%v, %v, want %s", got, err, want)
		}
	}
	if got, err := r.Addrs(t.Context(), "::1", 0); err != nil || got[0] != "::1" || asked != 0 {
		t.Errorf("an address: %v, %v", got, err)
	}
	fail = errors.New("no such host")
	if got, err := r.Addrs(t.Context(), "db", time.Hour); err == nil {
		t.Errorf("%v", got)
	}
	fail = nil
	see(0, "10.0.0.1")
	answer = []string{"10.0.0.2"}
	see(time.Hour, "10.0.0.2")
	answer = []string{"10.0.0.3"}
	see(time.Hour, "10.0.0.2") // still good
	if h := r.Hosts(); len(h) != 1 || h[0].Name != "db" || h[0].Left <= 0 || h[0].Addrs[0] != "10.0.0.2" {
		t.Errorf("%+v", h)
	}
	r.hosts["db"].until = time.Now()
	fail = errors.New("SERVFAIL")
	see(time.Hour, "10.0.0.2") // what is known stays
	fail, hang = nil, true
	see(time.Hour, "10.0.0.2")
	hang = false
	see(time.Hour, "10.0.0.3")
}

// The second address of a host is tried when the first does not answer.
func TestDialTriesEachAddress(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	nc, err := dialHost(ctx, &net.Dialer{}, []string{"127.0.0.2", "127.0.0.1"}, port)
	if err != nil {
		t.Fatal(err)
	}
	_ = nc.Close()
	if _, err := dialHost(ctx, &net.Dialer{}, []string{"127.0.0.2"}, port); err == nil {
		t.Error("connected to nobody")
	}
}
