package compat

import (
	"fmt"
	"os"
	"strings"
)

// maxExceptions is how many tests may be excepted.
const maxExceptions = 5

// exception is a test that fails through the proxy and may.
type exception struct {
	suite, way string
	test       string // its subtests are meant too
}

// readExceptions reads the file of exceptions: on each line a suite, a way or *
// for both, and a test as the report names it. What follows a # is a comment. No
// name of a file is no exceptions.
func readExceptions(path string) ([]exception, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("exceptions: %w", err)
	}
	return parseExceptions(path, string(text))
}

func parseExceptions(path, text string) ([]exception, error) {
	var out []exception
	tests := make(map[string]bool)
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 3 || f[1] != "*" && f[1] != Proxy && f[1] != Split {
			return nil, fmt.Errorf("%s:%d: want a suite, one of proxy, split and *, and a test", path, n)
		}
		tests[f[2]] = true
		for _, way := range []string{Proxy, Split} {
			if f[1] == "*" || f[1] == way {
				out = append(out, exception{f[0], way, f[2]})
			}
		}
	}
	if len(tests) > maxExceptions {
		return nil, fmt.Errorf("%s: %d tests, at most %d may be excepted", path, len(tests), maxExceptions)
	}
	return out, nil
}

// covers reports whether a test is the exception's or a subtest of it.
func (e exception) covers(test string) bool {
	return test == e.test || strings.HasPrefix(test, e.test+"/")
}
