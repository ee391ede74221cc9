package admin

import (
	"os"
	"strings"
	"testing"
)

// TestDocs: docs/console.md names every SHOW and every command, and every column
// of those that PgBouncer does not have.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../docs/console.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	_, own, ok := strings.Cut(text, "\n## SHOW of our own\n")
	own, _, ok2 := strings.Cut(own, "\n## ")
	if !ok || !ok2 {
		t.Fatal("no section of the SHOWs of our own")
	}
	named := func(in, name string) bool {
		return strings.Contains(in, "`"+name+"`") || strings.Contains(in, "`"+name+" ")
	}
	for word, e := range shows {
		if ignored(word) {
			if !named(text, word) {
				t.Errorf("docs/console.md does not name SHOW %s", word)
			}
			continue
		}
		if !named(text, e.name) {
			t.Errorf("docs/console.md does not name SHOW %s", e.name)
		}
		if !strings.Contains(own, "**`"+e.name+"`**") {
			continue
		}
		_, section, _ := strings.Cut(own, "**`"+e.name+"`**")
		section, _, _ = strings.Cut(section, "\n**`")
		for _, c := range e.cols {
			inPools := e.name == "POOLS_SERVERS" && strings.Contains(strings.Join(poolNames, " "), c.Name)
			if !inPools && !strings.Contains(section, c.Name) {
				t.Errorf("docs/console.md: SHOW %s has no %s", e.name, c.Name)
			}
		}
	}
	for _, e := range commands {
		if !named(text, e.name) {
			t.Errorf("docs/console.md does not name %s", e.name)
		}
	}
}
