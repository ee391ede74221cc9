package main

import (
	"fmt"
	"io"

	"pgproxy/config"
)

// convertCommand prints a configuration as TOML, and what it has to say of it on
// stderr. Passwords are printed as they are.
func convertCommand(args []string, stdout, stderr io.Writer) int {
	fs := newFlags("convert", "FILE.ini", stderr)
	if code, done := parseFlags(fs, args); done {
		return code
	}
	if fs.NArg() != 1 {
		fs.Usage()
		return exitUsage
	}
	cfg, err := config.Load(fs.Arg(0))
	if err != nil {
		fmt.Fprintf(stderr, "%v\n", err)
		return exitUsage
	}
	for _, w := range cfg.Warnings {
		fmt.Fprintf(stderr, "warning: %s\n", w)
	}
	if _, err := io.WriteString(stdout, cfg.TOML()); err != nil {
		fmt.Fprintf(stderr, "pgproxy convert: %v\n", err)
		return exitFailed
	}
	return exitOK
}
