package auth

import (
	"bytes"
	"net/netip"
	"sync"

	"pgproxy/config"
)

// offer is one way to ask a user for its password, and the secrets that the answer
// can be checked against. A user with several secrets may need several: a proof of
// SCRAM is made for one salt, which is sent first, and each SCRAM secret has its own.
type offer struct {
	scram      bool // else md5
	salt       []byte
	iterations int
	secrets    []*secret
}

// offers lists what the user of a login can be asked, by the newest secret first.
// Plain secrets can be checked with any of them. There is none if the user is not
// known, or no password is right.
func (l *login) offers() (list []*offer) {
	if l.acc == nil {
		return nil
	}
	var plain []*secret
	at := func(o offer) *offer {
		for _, x := range list {
			if x.scram == o.scram && x.iterations == o.iterations && bytes.Equal(x.salt, o.salt) {
				return x
			}
		}
		list = append(list, &o)
		return &o
	}
	for _, s := range l.acc.secrets {
		var o *offer
		switch {
		case s.kind == kindSCRAM:
			o = at(offer{scram: true, salt: s.verifier.salt, iterations: s.verifier.iterations})
		case s.kind == kindMD5 && l.method == config.AuthMD5:
			o = at(offer{})
		case s.kind == kindPlain:
			plain = append(plain, s)
			continue
		default:
			continue
		}
		o.secrets = append(o.secrets, s)
	}
	if len(list) == 0 && len(plain) > 0 {
		o := offer{}
		if l.method == config.AuthSCRAM {
			// The salt is the one that the user would be shown if it were unknown: it
			// stays the same, and can be told before anything is derived.
			o = offer{scram: true, salt: l.auth.salt(l.user, defaultSaltLen), iterations: defaultIterations}
		}
		at(o)
	}
	for _, o := range list {
		o.secrets = append(o.secrets, plain...)
	}
	return list
}

// offer chooses what the user is asked this time; nil if no answer can be right.
// After a wrong answer it is the next one of those that there are, for logins of the
// user from the same address; after a right one it stays.
func (l *login) offer() *offer {
	list := l.offers()
	if len(list) == 0 {
		return nil
	}
	if len(list) > 1 {
		l.turn, l.of = l.acc.turns.at(l.conn.Channel().Addr)%len(list), len(list)
	}
	return list[l.turn]
}

// settle notes whether the answer was right, which err says, and returns err.
func (l *login) settle(err error) error {
	if l.of > 1 {
		next := l.turn
		if err != nil {
			next = (l.turn + 1) % l.of
		}
		l.acc.turns.put(l.conn.Channel().Addr, next)
	}
	return err
}

// turns remembers which offer is the next one for an address. The zero value is
// empty. Any number of goroutines may use it.
type turns struct {
	mu   sync.Mutex
	next map[netip.Addr]int // guarded by mu; what is missing is 0
}

// maxTurns is how many addresses are remembered.
const maxTurns = 1000

func (t *turns) at(a netip.Addr) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.next[a]
}

func (t *turns) put(a netip.Addr, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n == 0 {
		delete(t.next, a)
		return
	}
	if _, ok := t.next[a]; !ok && len(t.next) >= maxTurns {
		for k := range t.next {
			delete(t.next, k)
			break
		}
	}
	if t.next == nil {
		t.next = make(map[netip.Addr]int)
	}
	t.next[a] = n
}

// take takes over what another has.
func (t *turns) take(from *turns) {
	from.mu.Lock()
	defer from.mu.Unlock()
	t.next = from.next
	from.next = nil
}
