//go:build pam

package auth

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"pgproxy/config"
)

// TestPAM asks the system's own libpam, with a module that runs a script.
func TestPAM(t *testing.T) {
	dir := t.TempDir()
	pamDir = dir
	t.Cleanup(func() { pamDir = "" })
	put := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	script := put("check.sh", `#!/bin/sh
[ "$(tr -d '\000')" = secret ] && [ "$PAM_USER" != mallory ] && [ "$PAM_RHOST" = 10.0.0.1 ]
`, 0o700)
	auth := "auth required pam_exec.so expose_authtok quiet " + script + "\n"
	for _, tt := range []struct{ name, file, user, password, want string }{
		{"right", auth + "account required pam_permit.so\n", "alice", "secret", "in"},
		{"wrong password", auth + "account required pam_permit.so\n", "alice", "x", "no"},
		{"another user", auth + "account required pam_permit.so\n", "mallory", "secret", "no"},
		{"no password", auth + "account required pam_permit.so\n", "alice", "", "no"},
		{"account refused", auth + "account required pam_deny.so\n", "alice", "secret", "no"},
		{"module that is not there", "auth required pam_none_such.so\naccount required pam_permit.so\n", "alice", "secret", "broken"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			put(pamService, tt.file, 0o600)
			c := &client{user: tt.user, password: tt.password, channel: Channel{Addr: netip.MustParseAddr("10.0.0.1")}}
			id, err := try(t, New(config.AuthPAM, nil, nil, nil), c)
			if got := outcome(err); got != tt.want {
				t.Errorf("%s (%v), want %s", got, err, tt.want)
			}
			if err == nil && id.Opens.Reveal() != tt.password {
				t.Errorf("opens with %q", id.Opens.Reveal())
			}
		})
	}
}
