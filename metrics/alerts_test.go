package metrics

import (
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestAlertRules: each metric in deploy/prometheus-alerts.yml exists.
func TestAlertRules(t *testing.T) {
	rules, err := os.ReadFile("../deploy/prometheus-alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("collector.go")
	if err != nil {
		t.Fatal(err)
	}
	used := regexp.MustCompile(`pgproxy_[a-z_]+`).FindAllString(string(rules), -1)
	if len(used) < 10 {
		t.Fatalf("%d metrics in the rules", len(used))
	}
	m := New(Options{Pools: emptySet(t)})
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for _, name := range used {
		short := strings.TrimPrefix(name, "pgproxy_")
		made := regexp.MustCompile(`(desc\("|ofServer\("|ofPool\(")` + strings.TrimPrefix(strings.TrimPrefix(short, "server_"), "pool_") + `"`)
		if !made.Match(source) && !strings.Contains(string(source), `desc("`+short+`"`) && !strings.Contains(rec.Body.String(), name) {
			t.Errorf("there is no metric %s", name)
		}
	}
}
