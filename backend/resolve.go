package backend

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// patience is how long a lookup may take where addresses are known already.
const patience = 2 * time.Second

// Resolver looks up the addresses of hosts and remembers them. Go's resolver tells no
// TTL, so the caller says for how long they are good. What is known stays while the
// resolver of the system fails. Its zero value is ready, and any goroutine may use
// it.
type Resolver struct {
	// Lookup finds the addresses of a host; nil: as the system does.
	Lookup func(ctx context.Context, host string) ([]string, error)

	mu    sync.Mutex
	hosts map[string]*known
}

// known is what is remembered of one host.
type known struct {
	asking sync.Mutex // held during a lookup

	// Guarded by Resolver.mu.
	addrs []string
	until time.Time // they are good up to here
}

// Host is one host for observers.
type Host struct {
	Name  string
	Left  time.Duration // for how long the addresses are good; negative if the resolver has failed since
	Addrs []string
}

// Addrs returns the addresses of a host, an address itself as it is. The result must
// not be changed.
func (r *Resolver) Addrs(ctx context.Context, host string, ttl time.Duration) ([]string, error) {
	if _, err := netip.ParseAddr(host); err == nil {
		return []string{host}, nil
	}
	r.mu.Lock()
	if r.hosts == nil {
		r.hosts = make(map[string]*known)
	}
	k := r.hosts[host]
	if k == nil {
		k = &known{}
		r.hosts[host] = k
	}
	addrs, until := k.addrs, k.until
	r.mu.Unlock()
	if addrs != nil && time.Now().Before(until) {
		return addrs, nil
	}
	if addrs != nil && !k.asking.TryLock() {
		return addrs, nil // somebody asks; what is known will do
	} else if addrs == nil {
		k.asking.Lock()
	}
	defer k.asking.Unlock()
	if addrs != nil {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, patience)
		defer stop()
	}
	lookup := r.Lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupHost
	}
	found, err := lookup(ctx, host)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("host %s has no address", host)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		if k.addrs == nil {
			return nil, err
		}
		return k.addrs, nil
	}
	k.addrs, k.until = found, time.Now().Add(ttl)
	return found, nil
}

// Hosts lists what is remembered, in order of names.
func (r *Resolver) Hosts() []Host {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Host
	for name, k := range r.hosts {
		if k.addrs != nil {
			out = append(out, Host{name, time.Until(k.until), slices.Clone(k.addrs)})
		}
	}
	slices.SortFunc(out, func(a, b Host) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// dialHost connects to the first address of a host that answers. While there are
// more, each gets an equal part of the time that is left.
func dialHost(ctx context.Context, nd *net.Dialer, addrs []string, port string) (net.Conn, error) {
	var first error
	for i, addr := range addrs {
		one, stop := ctx, context.CancelFunc(func() {})
		if deadline, ok := ctx.Deadline(); ok {
			one, stop = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(addrs)-i))
		}
		nc, err := nd.DialContext(one, "tcp", net.JoinHostPort(addr, port))
		stop()
		if err == nil {
			return nc, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// Addrs returns the addresses that a server has by its name; nil where nothing is
// looked up.
func (d *Dialer) Addrs(ctx context.Context, network, host string) ([]string, error) {
	if d.Resolver == nil || d.Connect != nil || network != "tcp" {
		return nil, nil
	}
	return d.Resolver.Addrs(ctx, host, d.DNSMaxTTL)
}

// RemoteHost returns the address of the server that the connection is to, without
// the port.
func (c *Conn) RemoteHost() string {
	host, _, err := net.SplitHostPort(c.dialed)
	if err != nil {
		return c.dialed
	}
	return host
}
