// Command run runs drivers' test suites directly and through pgproxy: the report
// goes to standard output as Markdown, progress to standard error. Ctrl-C ends
// everything that it started. See package compat.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"pgproxy/compat"
)

func main() { os.Exit(run()) }

func run() int {
	opt, err := compat.ParseFlags(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	res, err := compat.Run(ctx, opt, os.Stderr)
	if res != nil {
		fmt.Print(res.Markdown())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "compat:", err)
		return 1
	}
	if res.Failed() {
		return 1
	}
	return 0
}
