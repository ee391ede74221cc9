package auth

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/config"
)

// withPAM replaces PAM for a test.
func withPAM(t *testing.T, ask func(user, password, from string) error) {
	before := askPAM
	askPAM = ask
	t.Cleanup(func() { askPAM = before })
}

func TestWithoutPAM(t *testing.T) {
	withPAM(t, nil)
	if HasPAM() {
		t.Error("there is PAM")
	}
	if _, err := try(t, New(config.AuthPAM, nil, nil, nil), &client{user: "alice", password: "secret"}); outcome(err) != "broken" {
		t.Errorf("%v", err)
	}
}

// TestPAMWaits: modules that take their time hold up as many threads as there are
// slots, and no more.
func TestPAMWaits(t *testing.T) {
	var asked atomic.Int32
	full, answer := make(chan struct{}), make(chan struct{})
	withPAM(t, func(user, password, from string) error {
		if asked.Add(1) == maxPAM {
			close(full)
		}
		<-answer
		return nil
	})
	a := New(config.AuthPAM, nil, nil, nil)
	var all sync.WaitGroup
	for range maxPAM {
		all.Go(func() {
			if id, err := a.Authenticate(t.Context(), &client{user: "alice", password: "secret"}, "alice", "app"); err != nil || id.Opens.Reveal() != "secret" {
				t.Errorf("%+v, %v", id, err)
			}
		})
	}
	<-full
	if _, err := a.Authenticate(patience(t, 50*time.Millisecond), &client{user: "alice", password: "secret"}, "alice", "app"); outcome(err) != "broken" {
		t.Errorf("one more than there are slots: %v", err)
	}
	close(answer)
	all.Wait()
	if n := asked.Load(); n != maxPAM {
		t.Errorf("PAM was asked %d times, want %d", n, maxPAM)
	}
}

func TestPAMAnswers(t *testing.T) {
	withPAM(t, func(user, password, from string) error {
		if password != "secret" {
			return ErrFailed
		}
		return nil
	})
	a := New(config.AuthPAM, users(t, "bob", "of the server"), nil, nil)
	for _, tt := range []struct{ user, password, opens, want string }{
		{"alice", "secret", "secret", "in"},
		{"bob", "secret", "of the server", "in"},
		{"alice", "x", "", "no"},
		{"alice", "", "", "no"},
	} {
		id, err := try(t, a, &client{user: tt.user, password: tt.password, secretErr: errors.New("auth_query is asked")})
		if got := outcome(err); got != tt.want || id.Opens.Reveal() != tt.opens {
			t.Errorf("%s: %s (%v), opens with %q", tt.user, got, err, id.Opens.Reveal())
		}
	}
}
