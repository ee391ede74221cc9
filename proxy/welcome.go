package proxy

import (
	"cmp"
	"slices"
	"strings"
	"sync"

	"pgproxy/backend"
	"pgproxy/pool"
	"pgproxy/router"
	"pgproxy/wire"
)

// maxWelcomes bounds how many different logins are remembered.
const maxWelcomes = 1000

// welcomes remembers which parameters a server reports for a login with given
// settings, so that a client can be welcomed without asking a server again.
type welcomes struct {
	mu sync.Mutex
	m  map[welcomeKey]welcomed
}

// welcomed is the outcome of a login: what the server reports, and the settings
// in the form that it has given them.
type welcomed struct {
	params   []backend.Setting
	accepted *backend.Settings
}

type welcomeKey struct {
	pool     pool.Key
	settings string
}

func (w *welcomes) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.m = nil
}

// get returns the parameters to report to s and the settings that a server has
// accepted.
func (w *welcomes) get(s *Session, wanted *backend.Settings) ([]backend.Setting, *backend.Settings, error) {
	// application_name is free text: a server takes any, so it is not asked.
	name, named := wanted.Get("application_name")
	asked := wanted.Without("application_name")
	withName := func(x *backend.Settings) *backend.Settings {
		if named {
			x = x.With("application_name", name)
		}
		return x
	}
	p, err := s.primaryPool()
	if err != nil {
		return nil, nil, err
	}
	key := welcomeKey{p.Key, asked.Key()}
	w.mu.Lock()
	known, ok := w.m[key]
	w.mu.Unlock()
	if ok {
		return known.params, withName(known.accepted), nil
	}
	params, accepted, err := s.try(asked)
	if err != nil {
		return nil, nil, err
	}
	w.mu.Lock()
	if w.m == nil || len(w.m) >= maxWelcomes {
		w.m = make(map[welcomeKey]welcomed)
	}
	w.m[key] = welcomed{params, accepted}
	w.mu.Unlock()
	return params, withName(accepted), nil
}

// welcomePlan routes the question what a login reports.
var welcomePlan = &router.Plan{Class: router.ClassPrimary, Reason: "login"}

// try applies settings to a server connection and returns what it reports then,
// and the settings as it has them. One that it refuses or does not know is the
// client's error, in the server's words.
func (s *Session) try(want *backend.Settings) (params []backend.Setting, accepted *backend.Settings, err error) {
	c, err := s.borrow(welcomePlan, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { s.lease = nil }()
	if want == nil {
		params = sorted(c.Params())
		return params, nil, c.Send(&backend.Parcel{})
	}
	for _, x := range want.List() {
		next := accepted.With(x.Name, x.Value)
		owed, p, _ := c.Adopt(next, nil, nil)
		if _, reported := c.Reported(x.Name); !reported {
			owed, p = c.AppendRead([]string{x.Name}, owed, p)
		}
		if err := c.Send(&backend.Parcel{Owed: owed, Bytes: p, Pin: backend.PinBrief}); err != nil {
			return nil, nil, err
		}
		c.Quiet(s)
		if !c.Hold(s) {
			return nil, nil, s.lostBatch()
		}
		st := c.State()
		if e := st.Failed; e != nil {
			c.Abandon(s, "DISCARD ALL")
			e.Severity = wire.SeverityFatal
			return nil, nil, e
		}
		accepted = next
		v, ok := c.Reported(x.Name)
		if !ok {
			v, ok = st.Read.Get(x.Name)
		}
		if ok && v != x.Value {
			// The value may have been a part of one, as in "dmy" for DateStyle.
			accepted = accepted.With(x.Name, v)
			c.SetApplied(accepted)
		}
	}
	params = sorted(c.Params())
	if err := c.Send(&backend.Parcel{}); err != nil {
		return nil, nil, err
	}
	c.Unpin(backend.PinBrief)
	return params, accepted, nil
}

// sorted lists parameters in order of name.
func sorted(m map[string]string) []backend.Setting {
	out := make([]backend.Setting, 0, len(m))
	for k, v := range m {
		out = append(out, backend.Setting{Name: k, Value: v})
	}
	slices.SortFunc(out, func(a, b backend.Setting) int {
		return cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name))
	})
	return out
}

// interned keeps one Settings value for each content, so that clients that want
// the same compare equal by their pointers alone.
type interned struct {
	mu sync.Mutex
	m  map[string]*backend.Settings
}

// maxInterned bounds how many contents are kept; beyond it all are forgotten.
const maxInterned = 1000

// get returns the value for the content of s that was seen first.
func (i *interned) get(s *backend.Settings) *backend.Settings {
	if s == nil {
		return nil
	}
	k := s.Key()
	i.mu.Lock()
	defer i.mu.Unlock()
	if first := i.m[k]; first != nil {
		return first
	}
	if i.m == nil || len(i.m) >= maxInterned {
		i.m = make(map[string]*backend.Settings)
	}
	i.m[k] = s
	return s
}
