package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"pgproxy/admin"
)

// version is the release; between releases the commit follows it.
const version = "0.1.0"

func versionCommand(_ []string, stdout, _ io.Writer) int {
	fmt.Fprintf(stdout, "pgproxy %s (%s, %s/%s)\n", fullVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return exitOK
}

// bouncerVersion answers -V. PgBouncer's name comes first, as programs look for
// it.
func bouncerVersion(stdout io.Writer) int {
	fmt.Fprintf(stdout, "PgBouncer %s (pgproxy %s)\n", admin.PgBouncer, fullVersion())
	return exitOK
}

// fullVersion is the version with the commit it was built from, where the
// builder has noted it.
func fullVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return version + "+" + s.Value[:12]
		}
	}
	return version
}
