package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

// BinEnv names the environment variable that holds the folder of the PostgreSQL
// server programs, if they are to be taken from there.
const BinEnv = "PGPROXY_PG_BIN"

// ErrNoServer is wrapped by FindBin's error when no PostgreSQL server is
// installed.
var ErrNoServer = errors.New("no PostgreSQL server programs found")

// FindBin returns the folder that holds initdb and postgres. Version is a major
// version such as "15", or "" for the newest. The environment variable in BinEnv
// goes before everything else when version is "".
func FindBin(version string) (dir string, err error) {
	if env := os.Getenv(BinEnv); env != "" && version == "" {
		if !hasServer(env) {
			return "", fmt.Errorf("%w: %s=%s holds no initdb and postgres", ErrNoServer, BinEnv, env)
		}
		return env, nil
	}
	return findBin(version, []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin"})
}

func findBin(version string, patterns []string) (string, error) {
	type candidate struct {
		dir   string
		major int
	}
	var found []candidate
	for _, p := range patterns {
		dirs, _ := filepath.Glob(p) // the patterns are well formed
		for _, d := range dirs {
			if hasServer(d) {
				found = append(found, candidate{d, majorOf(d)})
			}
		}
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil && hasServer(filepath.Dir(real)) {
			found = append(found, candidate{filepath.Dir(real), majorOf(filepath.Dir(real))})
		}
	}
	sort.SliceStable(found, func(i, j int) bool { return found[i].major > found[j].major })
	for _, c := range found {
		if version == "" || strconv.Itoa(c.major) == version {
			return c.dir, nil
		}
	}
	want := version
	if want == "" {
		want = "15"
	}
	return "", fmt.Errorf("%w: install them with \"apt-get install postgresql-%s postgresql-client-%s\" (or \"make deps\" as root), or set %s to the folder that holds initdb and postgres",
		ErrNoServer, want, want, BinEnv)
}

func hasServer(dir string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.IsDir() {
			return false
		}
	}
	return true
}

// majorOf reads the major version out of a folder name such as
// /usr/lib/postgresql/15/bin or /usr/pgsql-15/bin; 0 if there is none.
func majorOf(dir string) int {
	name := filepath.Base(filepath.Dir(dir))
	n, err := strconv.Atoi(strings.TrimPrefix(name, "pgsql-"))
	if err != nil {
		return 0
	}
	return n
}

// account is the system user that the server programs run as: PostgreSQL
// refuses root, so root becomes somebody else.
type account struct {
	other    bool
	uid, gid uint32
}

func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil && uid != 0 {
			return account{other: true, uid: uint32(uid), gid: uint32(gid)}, nil
		}
	}
	return account{}, errors.New("PostgreSQL does not run as root, and there is neither a system user postgres nor nobody to run it as")
}

// own gives a file or folder to the account.
func (a account) own(path string) error {
	if !a.other {
		return nil
	}
	return os.Lchown(path, int(a.uid), int(a.gid))
}

// attributes are those of every child process: its own session, so that Ctrl-C
// on a terminal reaches only us, and the account.
func (a account) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true}
	if a.other {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	return attr
}

// reachable tells whether the account can get to dir, and if not which folder
// is in the way.
func (a account) reachable(dir string) error {
	if !a.other {
		return nil
	}
	for d := filepath.Dir(dir); ; d = filepath.Dir(d) {
		st, err := os.Stat(d)
		if err != nil {
			return err
		}
		if st.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("folder %s: the system user that PostgreSQL runs as may not pass through %s: chmod o+x it, or set TMPDIR to another folder", dir, d)
		}
		if d == filepath.Dir(d) {
			return nil
		}
	}
}
