package pgtest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// Ports are taken from below the range that Linux gives to outgoing connections
// (32768 and up): a server that is stopped and started again must find its port
// still free.
const (
	lowestPort  = 20000
	highestPort = 32000
)

// port is a free TCP port of 127.0.0.1. A listener holds it until release, when
// the server is to take it. The claim keeps other processes that start clusters
// from it until then and whenever the server is stopped: it is an abstract Unix
// socket, which ends with this process.
type port struct {
	number int
	hold   net.Listener
	claim  net.Listener
	once   sync.Once
}

func takePorts(n int) ([]*port, error) {
	var ports []*port
	var last error
	for range 1000 {
		if len(ports) == n {
			return ports, nil
		}
		number := lowestPort + rand.IntN(highestPort-lowestPort)
		claim, err := net.Listen("unix", fmt.Sprintf("@pgproxy-pgtest-port-%d", number))
		if err != nil {
			last = err
			continue
		}
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", number))
		if err != nil {
			_ = claim.Close()
			last = err
			continue
		}
		ports = append(ports, &port{number: number, hold: l, claim: claim})
	}
	for _, p := range ports {
		p.giveUp()
	}
	return nil, fmt.Errorf("no free port between %d and %d: %w", lowestPort, highestPort, last)
}

// release frees the port for the server that is to have it.
func (p *port) release() {
	p.once.Do(func() { _ = p.hold.Close() })
}

// giveUp leaves the port to others.
func (p *port) giveUp() {
	p.release()
	_ = p.claim.Close()
}

// FreePort finds a TCP port of 127.0.0.1 for a program to listen on. Nothing keeps
// others from taking it first.
func FreePort() (int, error) {
	p, err := takePorts(1)
	if err != nil {
		return 0, err
	}
	p[0].giveUp()
	return p[0].number, nil
}
