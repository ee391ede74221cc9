package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// binary is the compiled tests of one package.
type binary struct {
	name string // of the package: its folder in the module, or the module's name
	path string
	dir  string // where its tests run: the package's folder
}

// module is a Go module in the cache.
type module struct {
	Path, Version, Dir, Error string
}

// source finds the module of a suite in Go's module cache, downloading it if it is
// not there.
func source(ctx context.Context, s suite) (module, error) {
	if s.dir != "" {
		return module{Path: s.module, Dir: s.dir}, nil
	}
	var m module
	args := []string{"mod", "download", "-json", s.module + "@" + s.version}
	if s.version == "" {
		args = []string{"list", "-m", "-json", s.module}
	}
	out, err := goCommand(ctx, "", nil, args...)
	if err == nil {
		err = json.Unmarshal(out, &m)
	}
	if err == nil && m.Error != "" {
		err = errors.New(m.Error)
	}
	if err == nil && m.Dir == "" { // listed, but not downloaded yet
		if out, err = goCommand(ctx, "", nil, "mod", "download", "-json", m.Path+"@"+m.Version); err == nil {
			err = json.Unmarshal(out, &m)
		}
	}
	if err != nil {
		return m, fmt.Errorf("sources of %s: %w", s.module, err)
	}
	return m, nil
}

// compile copies a module into dir, which must not exist, and compiles the tests
// of its packages.
func compile(ctx context.Context, m module, dir string) ([]binary, error) {
	src, bin := filepath.Join(dir, "src"), filepath.Join(dir, "bin")
	if err := copyModule(m.Dir, src); err != nil {
		return nil, fmt.Errorf("copy of %s: %w", m.Path, err)
	}
	const tested = `{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}`
	env := []string{"GOFLAGS=-mod=mod", "GOWORK=off"}
	if _, err := goCommand(ctx, src, env, "mod", "download"); err != nil {
		return nil, fmt.Errorf("modules that %s needs: %w", m.Path, err)
	}
	out, err := goCommand(ctx, src, env, "list", "-f", tested, "./...")
	if err != nil {
		return nil, fmt.Errorf("packages of %s: %w", m.Path, err)
	}
	var bins []binary
	for line := range strings.Lines(string(out)) {
		pkg, folder, _ := strings.Cut(strings.TrimSpace(line), " ")
		name := strings.TrimPrefix(strings.TrimPrefix(pkg, m.Path), "/")
		if name == "" {
			name = baseName(m.Path)
		}
		b := binary{name: name, path: filepath.Join(bin, strings.ReplaceAll(name, "/", "_")+".test"), dir: folder}
		// Without the folder's name in it the result is found again in the build cache.
		if _, err := goCommand(ctx, folder, env, "test", "-c", "-trimpath", "-o", b.path, "."); err != nil {
			return nil, fmt.Errorf("tests of %s: %w", pkg, err)
		}
		bins = append(bins, b)
	}
	return bins, nil
}

// baseName is what a module is called for short: the last element of its path that
// is no major version.
func baseName(module string) string {
	name := path.Base(module)
	if len(name) > 1 && name[0] == 'v' && name[1] >= '0' && name[1] <= '9' {
		name = path.Base(path.Dir(module))
	}
	return name
}

// copyModule copies a folder of the module cache, which is read-only.
func copyModule(from, to string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if strings.HasSuffix(p, ".key") {
			mode = 0o600 // drivers refuse keys that others may read
		}
		return os.WriteFile(filepath.Join(to, rel), text, mode)
	})
}

// goCommand runs the go command in a folder and returns what it printed.
func goCommand(ctx context.Context, dir string, env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = 5 * time.Second
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		// -json reports its errors on standard output.
		return out.Bytes(), fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(append(out.Bytes(), bad.Bytes()...)))
	}
	return out.Bytes(), nil
}
