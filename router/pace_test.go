package router

import (
	"testing"
	"time"
)

// TestPace: a mean is believed after some measurements, and follows what comes; the
// floor stays near the quickest.
func TestPace(t *testing.T) {
	var p Pace
	for i := range enough {
		if p.Within(time.Hour) {
			t.Fatalf("believed after %d", i)
		}
		if slow := p.Took(100 * time.Microsecond); slow != 16 {
			t.Errorf("%d sixteenths, want 16", slow)
		}
	}
	if !p.Within(100*time.Microsecond) || p.Within(99*time.Microsecond) {
		t.Error("the mean is not 100 microseconds")
	}
	if slow := p.Took(10 * time.Millisecond); slow < 16*90 || slow > 16*100 {
		t.Errorf("a hundred times as long is %d sixteenths", slow)
	}
	if p.Within(time.Millisecond) {
		t.Error("one that took long has not moved the mean")
	}
	for range 60 {
		p.Took(100 * time.Microsecond)
	}
	if !p.Within(150 * time.Microsecond) {
		t.Error("the mean does not come down again")
	}
	p = Pace{}
	for i := range 5000 { // most take twice as long
		p.Took(time.Duration(100+100*min(i%10, 1)) * time.Microsecond)
	}
	if f := time.Duration(p.floor.Load()); f < 90*time.Microsecond || f > 140*time.Microsecond {
		t.Errorf("the floor is %v", f)
	}
}

// TestShareable: only what is proved and leaves nothing.
func TestShareable(t *testing.T) {
	r := New(Options{})
	for sql, want := range map[string]bool{
		"SELECT 1": true, "SELECT 'a'": true, "VALUES (1)": true,
		"SELECT * FROM t": false, // no catalog has been asked
		"SELECT f()":      false, "SELECT nextval('s')": false, "UPDATE t SET a = 1": false, "BEGIN": false, "SELECT 1; SELECT 2": false,
		"SHOW pgproxy.route": false, "SELECT 1 FOR UPDATE": false, "LISTEN a": false, "EXECUTE p": false,
		"SELECT set_config('work_mem', '1MB', false)": false, "SELECT pg_advisory_lock(1)": false, "SELEC": false,
		"/* pgproxy: explain */ SELECT 1": false, "COPY (SELECT 1) TO STDOUT": false, "": false,
	} {
		if got := r.Plan([]byte(sql)).Shareable(); got != want {
			t.Errorf("%q: %v, want %v", sql, got, want)
		}
	}
}
