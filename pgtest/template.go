package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// templates holds one initialised database for each version, made when it is
// first asked for and copied for each cluster. A watchdog removes it when the
// process ends, in whatever way; RemoveTemplates does so earlier.
var templates struct {
	mu  sync.Mutex
	all map[string]*templateDir // by BinDir
}

type templateDir struct {
	root string
	data string
	dog  *watchdog
}

// template returns the data folder to copy from.
func template(ctx context.Context, bin string, acc account) (string, error) {
	templates.mu.Lock()
	defer templates.mu.Unlock()
	if t := templates.all[bin]; t != nil {
		return t.data, nil
	}
	root, err := makeFolder("", acc)
	if err != nil {
		return "", err
	}
	dog, err := startWatchdog(root)
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(root))
	}
	t := &templateDir{root: root, data: filepath.Join(root, "template"), dog: dog}
	if err := initdb(ctx, bin, acc, t.data); err != nil {
		return "", errors.Join(err, t.remove())
	}
	if templates.all == nil {
		templates.all = make(map[string]*templateDir)
	}
	templates.all[bin] = t
	return t.data, nil
}

// RemoveTemplates removes what Start keeps from one cluster of a test process to
// the next, for those who look whether anything is left.
func RemoveTemplates() error {
	templates.mu.Lock()
	defer templates.mu.Unlock()
	var errs []error
	for _, t := range templates.all {
		errs = append(errs, t.remove())
	}
	templates.all = nil
	return errors.Join(errs...)
}

func (t *templateDir) remove() error {
	err := os.RemoveAll(t.root)
	t.dog.release(err == nil)
	return err
}

// initdb makes a new database in data. WAL segments are 1 MiB instead of 16,
// which makes copies small.
func initdb(ctx context.Context, bin string, acc account, data string) error {
	secret := data + ".password"
	if err := os.WriteFile(secret, []byte(SuperuserPassword+"\n"), 0o600); err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	defer os.Remove(secret)
	if err := acc.own(secret); err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	err := runProgram(ctx, acc, filepath.Dir(data), nil, filepath.Join(bin, "initdb"),
		"-D", data, "-U", Superuser, "--pwfile", secret, "--auth=scram-sha-256",
		"--locale=C", "--encoding=UTF8", "--wal-segsize=1", "--no-sync", "--no-instructions")
	if err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	return nil
}

// runProgram runs a program to its end as acc. Its error carries what the
// program printed.
func runProgram(ctx context.Context, acc account, dir string, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = ChildEnv(env...)
	cmd.SysProcAttr = acc.attributes()
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout = &out
	cmd.Stderr = &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
