package proxy

import "testing"

func TestSaysNow(t *testing.T) {
	for text, want := range map[string]bool{
		"SELECT 'now'":                true,
		"SELECT ' Today 10:00'::date": true,
		"SELECT date 'YESTERDAY'":     true,
		"SELECT '10:00 tomorrow'":     true,
		"SELECT 'a', 'now'":           true,
		"SELECT 'now":                 true,
		"SELECT now()":                false,
		"SELECT 'known', 'nowhere'":   false,
		"SELECT 'a' AS today":         false,
		"SELECT 'todays'":             false,
		"SELECT $1":                   false,
		"":                            false,
	} {
		if got := saysNow([]byte(text)); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
}
