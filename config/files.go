package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// relative finds a file that the configuration names.
func (p *parser) relative(file string) string {
	if file == "" || filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(filepath.Dir(p.path), file)
}

// maxPasswordFile bounds what is read of a password_file, in bytes.
const maxPasswordFile = 64 << 10

// passwordFile reads the password of a database from its file, without one end of
// line at the end.
func (p *parser) passwordFile(at place, e *databaseEntry) {
	if e.PasswordFile == "" {
		p.fault(at, "want the name of a file, found an empty string")
		return
	}
	text, mode, err := readSmall(p.relative(e.PasswordFile), maxPasswordFile)
	if err != nil {
		p.fault(at, "%s", err)
		return
	}
	if line, ok := strings.CutSuffix(text, "\n"); ok {
		text = strings.TrimSuffix(line, "\r")
	}
	switch {
	case text == "":
		p.fault(at, "the file is empty: want the password in it")
	case strings.ContainsAny(text, "\x00\r\n"):
		p.fault(at, "the file has several lines or a NUL character: want the password alone")
	default:
		e.Password = Secret(text)
		if mode.Perm()&0o004 != 0 {
			p.warn(at, "every user of this machine may read the file: want chmod o-r for it")
		}
	}
}

// readSmall reads a regular file of at most limit bytes: another, as a pipe, could
// block for ever.
func readSmall(path string, limit int64) (text string, mode os.FileMode, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", 0, fmt.Errorf("want a file that can be read: %w", err)
	}
	if !info.Mode().IsRegular() {
		return "", 0, errors.New("want a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return "", 0, fmt.Errorf("want a file that can be read: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return "", 0, fmt.Errorf("want a file that can be read: %w", err)
	}
	if int64(len(b)) > limit {
		return "", 0, fmt.Errorf("the file is longer than %d bytes", limit)
	}
	return string(b), info.Mode(), nil
}
