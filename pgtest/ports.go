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

// port is a free TCP port of 127.0.0.1. It is held by a listener until release,
// so that no other process picks it.
type port struct {
	number int
	hold   net.Listener
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
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", number))
		if err != nil {
			last = err
			continue
		}
		ports = append(ports, &port{number: number, hold: l})
	}
	for _, p := range ports {
		p.release()
	}
	return nil, fmt.Errorf("no free port between %d and %d: %w", lowestPort, highestPort, last)
}

// release frees the port for the server that is to have it.
func (p *port) release() {
	p.once.Do(func() { _ = p.hold.Close() })
}
