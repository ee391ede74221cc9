package pgtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Slapd is OpenLDAP's server, in a temporary folder and on ports of its own.
type Slapd struct {
	Port    int    // ldap, with StartTLS
	TLSPort int    // ldaps
	CAFile  string // of its certificate, which is valid for 127.0.0.1 and localhost
}

// The tree of a Slapd and who may change it. Nobody may read a password.
const (
	SlapdBase     = "dc=example,dc=net"
	SlapdAdmin    = "cn=admin," + SlapdBase
	SlapdPassword = "directory secret"
)

// StartSlapd starts Debian's slapd with entries in LDIF behind that of SlapdBase. It
// lets clients in that bind with a name and no password, as nobody. Where the
// program is missing the test is skipped.
func StartSlapd(t testing.TB, ldif string) *Slapd {
	t.Helper()
	program, err := exec.LookPath("slapd")
	if err != nil {
		program = "/usr/sbin/slapd"
	}
	schema := "/etc/ldap/schema/core.schema"
	for _, needed := range []string{program, schema} {
		if _, err := os.Stat(needed); err != nil {
			// make deps installs it as root; the fake directory of package auth shows what
			// does not need a real one.
			t.Skip("SKIPPED: slapd is not installed (apt-get install slapd)")
		}
	}
	ports, err := takePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	dir, ca := t.TempDir(), NewCA(t)
	cert := ca.Issue("localhost", nil)
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	conf := write("slapd.conf", strings.Join([]string{
		"include " + schema, "include /etc/ldap/schema/cosine.schema", "include /etc/ldap/schema/inetorgperson.schema",
		"modulepath /usr/lib/ldap", "moduleload back_mdb.la", "pidfile " + filepath.Join(dir, "pid"),
		"TLSCACertificateFile " + ca.File, "TLSCertificateFile " + cert.CertFile, "TLSCertificateKeyFile " + cert.KeyFile,
		"allow bind_anon_cred bind_anon_dn",
		"database mdb", "suffix " + SlapdBase, "rootdn " + SlapdAdmin, `rootpw "` + SlapdPassword + `"`, "directory " + filepath.Join(dir, "db"),
		"access to attrs=userPassword by anonymous auth by * none", "access to * by * read", "",
	}, "\n"))
	top := "dn: " + SlapdBase + "\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: example\n\n"
	add := exec.Command(program, "-T", "add", "-f", conf, "-l", write("entries.ldif", top+ldif))
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("adding entries to slapd: %v\n%s", err, out)
	}
	s := &Slapd{Port: ports[0].number, TLSPort: ports[1].number, CAFile: ca.File}
	for _, p := range ports {
		p.release()
		t.Cleanup(p.giveUp)
	}
	urls := fmt.Sprintf("ldap://127.0.0.1:%d ldaps://127.0.0.1:%d", s.Port, s.TLSPort)
	proc, err := Program{Path: program, Args: []string{"-d", "0", "-f", conf, "-h", urls}, Dir: dir, Log: filepath.Join(dir, "log")}.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proc.Stop(); err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.TLSPort))
		if err == nil {
			_ = conn.Close()
			return s
		}
		if dead := proc.Alive(); dead != nil {
			t.Fatal(dead)
		}
		if time.Now().After(end) {
			t.Fatalf("slapd does not listen: %v", err)
		}
	}
}
