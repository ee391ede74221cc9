package proxy

import (
	"context"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"sync"

	"pgproxy/config"
	"pgproxy/wire"
)

// Several processes may serve one address (so_reuseport, a load balancer, a
// restart). A cancel request comes on a connection of its own, so it may reach
// another process than its client's. With peer_id the key says whose client it
// is: the low bits of the process number are the peer's, the others random, as is
// the secret but for its last two bits. These count how often a request may still
// be passed on, so that peers who do not agree who is who pass nothing round for
// ever. A client may only lower that count.

const (
	peerBits = 14 // of a process number; config bounds peer_id by it
	hopsMask = 3  // of the last byte of a secret
)

// maxSessions bounds the sessions of a process with peer_id: half of the process
// numbers that it can give, so that a free one is found soon.
const maxSessions = (1<<31 - lowestPID) >> peerBits / 2

// newPID makes a process number, of this peer if the process is one.
func (s *Server) newPID() uint32 {
	if s.peerID == 0 {
		return randomPID()
	}
	const lowest = lowestPID>>peerBits + 1
	var b [4]byte
	random(b[:])
	return (lowest+binary.BigEndian.Uint32(b[:])%(1<<(31-peerBits)-lowest))<<peerBits | s.peerID
}

// newSecret makes the secret of a cancel key.
func (s *Server) newSecret(n int) []byte {
	secret := make([]byte, n)
	random(secret)
	if s.peerID != 0 {
		secret[n-1] |= hopsMask
	}
	return secret
}

// knows tells whether a secret is that of a session.
func (s *Server) knows(ses *Session, secret []byte) bool {
	if s.peerID != 0 && len(secret) > 0 {
		secret = append([]byte(nil), secret...)
		secret[len(secret)-1] |= hopsMask
	}
	return subtle.ConstantTimeCompare(ses.secret, secret) == 1
}

// passOn hands a cancel request to the peer whose client it is for, and returns
// when that has acted on it. It reports whether it is a peer's at all.
func (s *Server) passOn(pid uint32, secret []byte) bool {
	id := pid & (1<<peerBits - 1)
	cfg := s.current.Load().Config
	peer := cfg.Peers[int(id)]
	if s.peerID == 0 || id == s.peerID || peer == nil || len(secret) == 0 {
		return false
	}
	hops := secret[len(secret)-1] & hopsMask
	if hops == 0 {
		s.log.Warn("cancel request passed on too often: do all peers have the same [peers]?", "peer_id", id)
		return true
	}
	secret = append([]byte(nil), secret...)
	secret[len(secret)-1] = secret[len(secret)-1]&^hopsMask | (hops - 1)
	ctx, stop := context.WithTimeout(s.ctx, cfg.Proxy.CancelWaitTimeout)
	defer stop()
	if err := s.peerLine(peer.ID).send(ctx, cfg, peer, pid, secret); err != nil {
		s.log.Warn("cancel request not passed on", "peer_id", id, "error", err)
	}
	return true
}

// maxPeerWaiting bounds the cancel requests that wait for a peer: nobody has
// proved that there is a client to cancel.
const maxPeerWaiting = 1000

// peerLine counts the cancel requests that are passed on to one peer.
type peerLine struct {
	mu      sync.Mutex
	stats   PeerStats       // guarded by mu
	waiting []chan struct{} // in order of their coming; closed with a place; guarded by mu
}

// PeerStats is a copy of what goes to one peer at this moment.
type PeerStats struct {
	ID         int
	Waiting    int // cancel requests that wait for a place among pool_size
	Connecting int
	Sent       int // the peer has not acted on them yet
}

func (s *Server) peerLine(id int) *peerLine {
	l, _ := s.peers.LoadOrStore(id, &peerLine{stats: PeerStats{ID: id}})
	return l.(*peerLine)
}

// PeerStats returns what goes to a peer at this moment.
func (s *Server) PeerStats(id int) PeerStats {
	l := s.peerLine(id)
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.stats
	st.Waiting = len(l.waiting)
	return st
}

// send passes one request on and waits for the peer to close the connection.
func (l *peerLine) send(ctx context.Context, cfg *config.Config, peer *config.Peer, pid uint32, secret []byte) error {
	size := peer.PoolSize
	if size == 0 {
		size = cfg.Proxy.DefaultPoolSize
	}
	if err := l.enter(ctx, size); err != nil {
		return err
	}
	at := &l.stats.Connecting
	defer func() { l.leave(at) }()
	network, addr := peerAddress(peer)
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return err
	}
	defer func() { _ = nc.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	l.mu.Lock()
	l.stats.Connecting--
	at = &l.stats.Sent
	l.stats.Sent++
	l.mu.Unlock()
	if _, err := nc.Write(wire.AppendCancel(nil, pid, secret)); err != nil {
		return err
	}
	var b [1]byte
	_, _ = nc.Read(b[:]) // which is its end, or that of ctx
	return context.Cause(ctx)
}

// enter takes a place among size, or waits for one; 0 is no limit.
func (l *peerLine) enter(ctx context.Context, size int) error {
	l.mu.Lock()
	if size == 0 || l.stats.Connecting+l.stats.Sent < size {
		l.stats.Connecting++
		l.mu.Unlock()
		return nil
	}
	if len(l.waiting) >= maxPeerWaiting {
		l.mu.Unlock()
		return fmt.Errorf("%d wait already", maxPeerWaiting)
	}
	place := make(chan struct{})
	l.waiting = append(l.waiting, place)
	l.mu.Unlock()
	select {
	case <-place:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, w := range l.waiting {
		if w == place {
			l.waiting = append(l.waiting[:i], l.waiting[i+1:]...)
			return fmt.Errorf("no place among pool_size: %w", context.Cause(ctx))
		}
	}
	return nil // it has come meanwhile
}

// leave gives a place to who has waited longest.
func (l *peerLine) leave(at *int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*at--
	if len(l.waiting) > 0 {
		l.stats.Connecting++
		close(l.waiting[0])
		l.waiting = l.waiting[1:]
	}
}

// peerAddress is where a peer listens.
func peerAddress(p *config.Peer) (network, addr string) {
	if p.Host[0] == '/' || p.Host[0] == '@' {
		return "unix", filepath.Join(p.Host, fmt.Sprintf(".s.PGSQL.%d", p.Port))
	}
	return "tcp", net.JoinHostPort(p.Host, strconv.Itoa(p.Port))
}
