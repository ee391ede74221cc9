package repocheck

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "pgproxy"

// arrows says which of our packages a package may import, besides packages below
// itself; everything may import the standard library and the module's
// dependencies. Test files are free.
var arrows = []struct {
	pkg     string
	imports []string // "*" is everything
}{
	{"wire", nil},
	{"netio", nil},
	{"config", nil},
	{"auth", []string{"wire", "config"}},
	{"router", []string{"config"}},
	{"backend", []string{"wire", "netio", "auth", "config"}},
	{"pool", []string{"backend", "config"}},
	{"monitor", []string{"backend", "router", "config"}},
	{"proxy", []string{"wire", "netio", "auth", "router", "backend", "pool", "config"}},
	{"admin", []string{"wire", "config", "pool", "monitor", "proxy"}},
	{"metrics", []string{"pool", "monitor", "proxy", "config"}},
	{"pgtest", []string{"wire"}},
	{"bench", []string{"pgtest"}},
	{"compat", []string{"pgtest"}},
	{"cmd/pgproxy", []string{"*"}},
	{"internal/repocheck", nil},
}

// root is the module's folder.
const root = "../.."

// source is one parsed Go file.
type source struct {
	path string // from the root, with slashes
	pkg  string // its folder
	test bool
	file *ast.File
	text string
}

var positions = token.NewFileSet()

// sources parses all Go files of the module.
func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	for _, path := range files(t) {
		if !strings.HasSuffix(path, ".go") || strings.HasPrefix(filepath.ToSlash(path), "drivers/go/") { // a module of its own
			continue
		}
		full := filepath.Join(root, path)
		text, err := os.ReadFile(full)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(positions, full, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		path = filepath.ToSlash(path)
		pkg, _, _ := cutLast(path, "/")
		out = append(out, source{path, pkg, strings.HasSuffix(path, "_test.go"), f, string(text)})
	}
	if len(out) == 0 {
		t.Fatal("no Go files found")
	}
	return out
}

// files lists the repository's files from the root, without those that are built
// or fetched.
func files(t *testing.T) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && slices.Contains([]string{".git", ".tools", ".bench", ".drivers", "bin", "testdata", "node_modules"}, d.Name()):
			return fs.SkipDir
		case d.Type().IsRegular():
			out = append(out, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

// allowed finds what a package may import: the entry for it or for the nearest
// folder above it.
func allowed(pkg string) (owner string, imports []string, known bool) {
	for p := pkg; p != ""; p, _, _ = cutLast(p, "/") {
		for _, a := range arrows {
			if a.pkg == p {
				return a.pkg, a.imports, true
			}
		}
	}
	return "", nil, false
}

// mayImport reports whether an arrow leads from one package to another.
func mayImport(from, to string) (ok, known bool) {
	owner, imports, known := allowed(from)
	if !known {
		return false, false
	}
	if to == owner || strings.HasPrefix(to, owner+"/") {
		return true, true
	}
	for _, i := range imports {
		if i == "*" || to == i || strings.HasPrefix(to, i+"/") {
			return true, true
		}
	}
	return false, true
}

func TestImportArrows(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		if _, _, known := allowed(s.pkg); !known {
			t.Errorf("%s: package %q has no entry in arrows: add one here and in ARCHITECTURE.md", s.path, s.pkg)
			continue
		}
		for _, i := range s.file.Imports {
			path, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			to, ours := strings.CutPrefix(path, module+"/")
			if !ours {
				continue
			}
			if ok, _ := mayImport(s.pkg, to); !ok {
				t.Errorf("%s: %s may not import %s", positions.Position(i.Pos()), s.pkg, to)
			}
		}
	}
}

func TestMayImport(t *testing.T) {
	for _, tt := range []struct {
		from, to  string
		ok, known bool
	}{
		{"backend", "wire", true, true},
		{"wire", "backend", false, true},
		{"pool", "wire", false, true},
		{"bench/run", "bench", true, true},
		{"bench/run", "pgtest", true, true},
		{"bench/run", "proxy", false, true},
		{"cmd/pgproxy", "admin", true, true},
		{"nobody", "wire", false, false},
	} {
		if ok, known := mayImport(tt.from, tt.to); ok != tt.ok || known != tt.known {
			t.Errorf("%s to %s: %t, known %t", tt.from, tt.to, ok, known)
		}
	}
}

// TestLintRulesAreTheArrows keeps the linter's copy of the arrows the same.
func TestLintRulesAreTheArrows(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range arrows {
		if slices.Contains(a.imports, "*") {
			continue
		}
		rule := lintRule(a.pkg, a.imports)
		if !strings.Contains(string(text), rule) {
			t.Errorf(".golangci.yml lacks this rule of depguard:\n%s", rule)
		}
	}
}

func lintRule(pkg string, imports []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "        %s:\n", strings.ReplaceAll(pkg, "/", "-"))
	b.WriteString("          list-mode: lax\n")
	fmt.Fprintf(&b, "          files: [\"**/%s/**/*.go\", \"**/%s/*.go\", \"!$test\"]\n", pkg, pkg)
	fmt.Fprintf(&b, "          deny: [{pkg: %s/, desc: \"no arrow from %s to there: see internal/repocheck\"}]\n", module, pkg)
	names := []string{module + "/" + pkg}
	for _, i := range imports {
		names = append(names, module+"/"+i)
	}
	fmt.Fprintf(&b, "          allow: [%s]\n", strings.Join(names, ", "))
	return b.String()
}

func TestOnePackageCommentEach(t *testing.T) {
	docs := make(map[string][]source)
	for _, s := range sources(t) {
		if s.test {
			if s.file.Doc != nil && strings.HasPrefix(s.file.Doc.Text(), "Package ") {
				t.Errorf("%s: a package comment in a test file", s.path)
			}
			continue
		}
		if _, there := docs[s.pkg]; !there {
			docs[s.pkg] = nil
		}
		if s.file.Doc != nil {
			docs[s.pkg] = append(docs[s.pkg], s)
		}
	}
	for pkg, with := range docs {
		if len(with) != 1 {
			t.Errorf("package %s has %d package comments, want 1", pkg, len(with))
			continue
		}
		f := with[0].file
		if want := "Package " + f.Name.Name + " "; f.Name.Name != "main" && !strings.HasPrefix(f.Doc.Text(), want) {
			t.Errorf("%s: the package comment does not start with %q", with[0].path, want)
		}
	}
}

// TestNoSilentSkipsNoSleeps: a skipped test needs a comment that says why, on
// its line or the one above; a sleep is no way to wait.
func TestNoSilentSkipsNoSleeps(t *testing.T) {
	for _, s := range sources(t) {
		commented := make(map[int]bool)
		for _, g := range s.file.Comments {
			commented[positions.Position(g.End()).Line] = true
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			at := positions.Position(sel.Sel.Pos())
			x, _ := sel.X.(*ast.Ident)
			switch sel.Sel.Name {
			case "Skip", "Skipf", "SkipNow":
				isTest := x != nil && slices.Contains([]string{"t", "b", "f", "tb"}, x.Name)
				if isTest && !commented[at.Line] && !commented[at.Line-1] {
					t.Errorf("%s: a skipped test without a comment", at)
				}
			case "Sleep":
				if s.test && x != nil && x.Name == "time" {
					t.Errorf("%s: time.Sleep in a test: wait for a condition instead", at)
				}
			}
			return true
		})
	}
}

// TestNoPathsOfAMachine looks for folders that exist on one machine only.
func TestNoPathsOfAMachine(t *testing.T) {
	home := regexp.MustCompile(`/(home|Users)/[a-z]|/root/`)
	var here []string
	if dir, err := filepath.Abs(root); err == nil && len(dir) > 1 {
		here = append(here, dir+"/")
	}
	if dir, err := os.UserHomeDir(); err == nil && len(dir) > 1 {
		here = append(here, dir+"/")
	}
	for _, path := range files(t) {
		if filepath.ToSlash(filepath.Dir(path)) == "internal/repocheck" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			found := home.FindString(line)
			for _, dir := range here {
				if strings.Contains(line, dir) {
					found = dir
				}
			}
			if found != "" {
				t.Errorf("%s:%d: a path of one machine: %s", path, i+1, found)
			}
		}
	}
}

func TestMakefileNamesItsTargets(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	target := regexp.MustCompile(`(?m)^([a-z]+):[^=\n]*?(## .+)?$`)
	seen := make(map[string]bool)
	for _, m := range target.FindAllStringSubmatch(string(text), -1) {
		seen[m[1]] = true
		if m[2] == "" {
			t.Errorf("target %s says nothing for the list that make prints", m[1])
		}
	}
	for _, name := range []string{"help", "build", "run", "test", "race", "lint", "fuzz", "bench", "compat", "drivers", "clean", "check", "deps", "vuln"} {
		if !seen[name] {
			t.Errorf("no target %s", name)
		}
	}
}

// TestSecretsAreComparedInConstantTime: the time that a comparison takes tells how
// much of a secret is right. What is a secret is known by its name here.
func TestSecretsAreComparedInConstantTime(t *testing.T) {
	secret := regexp.MustCompile(`(?i)(\.Reveal\(\)|secret|password|passwd|proof|stored|server(Key|Signature)|signature)$`)
	name := func(e ast.Expr) string {
		switch e := e.(type) {
		case *ast.CallExpr:
			if sel, ok := e.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Reveal" {
				return ".Reveal()"
			}
			if id, ok := e.Fun.(*ast.Ident); ok && id.Name == "string" && len(e.Args) == 1 {
				if sel, ok := e.Args[0].(*ast.SelectorExpr); ok {
					return sel.Sel.Name
				}
			}
		case *ast.SliceExpr:
			if sel, ok := e.X.(*ast.SelectorExpr); ok {
				return sel.Sel.Name
			}
		case *ast.SelectorExpr:
			if id, ok := e.X.(*ast.Ident); ok && id.Name == "wire" { // names of messages
				return ""
			}
			return e.Sel.Name
		case *ast.Ident:
			return e.Name
		}
		return ""
	}
	empty := func(e ast.Expr) bool {
		l, ok := e.(*ast.BasicLit)
		id, isName := e.(*ast.Ident)
		return ok && (l.Value == `""` || l.Kind == token.INT) || isName && id.Name == "nil"
	}
	for _, s := range sources(t) {
		if s.test || !slices.Contains([]string{"auth", "backend", "proxy", "pool", "config", "admin", "cmd/pgproxy"}, s.pkg) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			var x, y ast.Expr
			switch n := n.(type) {
			case *ast.BinaryExpr:
				if n.Op == token.EQL || n.Op == token.NEQ {
					x, y = n.X, n.Y
				}
			case *ast.CallExpr:
				if sel, ok := n.Fun.(*ast.SelectorExpr); ok && (sel.Sel.Name == "Equal" || sel.Sel.Name == "Compare") && len(n.Args) == 2 {
					x, y = n.Args[0], n.Args[1]
				}
			}
			if x != nil && !empty(x) && !empty(y) && (secret.MatchString(name(x)) || secret.MatchString(name(y))) {
				t.Errorf("%s: a secret is compared by ==: want crypto/subtle", positions.Position(n.Pos()))
			}
			return true
		})
	}
}

// TestSecurityNamesItsTests: docs/security.md names tests that there are, and each
// entry of the list once.
func TestSecurityNamesItsTests(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/security.md"))
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]bool)
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && s.test && f.Recv == nil {
				known[f.Name.Name] = true
			}
		}
	}
	for _, name := range regexp.MustCompile("`(?:Test|Fuzz)[A-Za-z0-9]+`").FindAllString(string(text), -1) {
		if !known[strings.Trim(name, "`")] {
			t.Errorf("there is no %s", name)
		}
	}
	for i := 1; i <= 34; i++ {
		if n := strings.Count(string(text), fmt.Sprintf("| S-%02d |", i)); n != 1 {
			t.Errorf("S-%02d stands there %d times", i, n)
		}
	}
}
