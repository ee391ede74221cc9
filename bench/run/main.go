// Command run measures pgproxy beside the poolers that are installed: the report
// goes to standard output as Markdown, progress to standard error. Ctrl-C ends
// everything that it started. See package bench.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"pgproxy/bench"
)

func main() { os.Exit(run()) }

func run() int {
	opt, err := bench.ParseFlags(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	res, err := bench.Run(ctx, opt, os.Stderr)
	if res != nil {
		fmt.Print(res.Markdown())
		if opt.JSON != "" {
			err = errors.Join(err, res.WriteJSON(opt.JSON))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	if res.Failed() {
		return 1
	}
	return 0
}
