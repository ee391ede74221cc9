package bench

import (
	"bytes"
	"errors"
	"flag"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseFlags(t *testing.T) {
	with := func(change func(*Options)) Options {
		o := Default()
		change(&o)
		return o
	}
	for _, tt := range []struct {
		args  string
		want  Options
		wrong string
	}{
		{args: "", want: Default()},
		{
			args: "-rounds 3 -seconds 1 -clients 8,32 -modes simple -pool 4,8,20 -scale 2 -replicas 0",
			want: with(func(o *Options) {
				o.Rounds, o.Seconds, o.Clients, o.Modes, o.Pools, o.Scale, o.Replicas = 3, 1, []int{8, 32}, []string{"simple"}, []int{4, 8, 20}, 2, 0
			}),
		},
		{
			args: "-peers pgproxy,direct -idle 4000 -tpcb -auth scram-sha-256 -sample 1 -json= -profile prof -pgproxy a -pgbouncer b",
			want: with(func(o *Options) {
				o.Peers, o.Idle, o.TPCB, o.Auth, o.Sample, o.JSON = []string{"pgproxy", "direct"}, 4000, true, "scram-sha-256", 1, ""
				o.Profile, o.PgProxy, o.PgBouncer = "prof", "a", "b"
			}),
		},
		{args: "-rounds 0", wrong: "nothing to do"},
		{args: "-rounds -1", wrong: "want 0 to 1000"},
		{args: "-seconds 0", wrong: "want 1 to 3600"},
		{args: "-clients 0", wrong: "positive integers"},
		{args: "-clients 16,x", wrong: "positive integers"},
		{args: "-clients 6000", wrong: "-clients 5000"},
		{args: "-modes fast", wrong: "want simple, extended, prepared"},
		{args: "-modes=", wrong: "one value at least"},
		{args: "-peers odyssey", wrong: "want pgproxy, unsplit, base, pgbouncer, pgpool, direct"},
		{args: "-auth md5", wrong: "want trust, scram-sha-256"},
		{args: "-sample 0", wrong: "more than 0"},
		{args: "extra", wrong: "unexpected argument"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			var out bytes.Buffer
			got, err := ParseFlags(strings.Fields(tt.args), &out)
			switch {
			case tt.wrong != "":
				if err == nil || !strings.Contains(out.String(), tt.wrong) {
					t.Errorf("error %v, printed %q, want %q", err, out.String(), tt.wrong)
				}
			case err != nil:
				t.Errorf("%v", err)
			case !reflect.DeepEqual(got, tt.want):
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestHelpNamesDefaults(t *testing.T) {
	var out bytes.Buffer
	if _, err := ParseFlags([]string{"-h"}, &out); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("error %v, want %v", err, flag.ErrHelp)
	}
	for _, want := range []string{"(default 16,64,256)", "(default simple,extended,prepared)", "(default 20)", "(default 5)"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the help lacks %q:\n%s", want, out.String())
		}
	}
}

func TestWorkloads(t *testing.T) {
	o := Default()
	o.Clients, o.Modes, o.TPCB = []int{2, 4}, []string{"simple", "prepared"}, true
	var got []string
	for _, w := range o.workloads() {
		got = append(got, w.String())
	}
	want := []string{
		"select, simple, 2 clients", "select, simple, 4 clients",
		"select, prepared, 2 clients", "select, prepared, 4 clients", "tpcb, simple, 16 clients",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if g := o.guess(3); g != 15*32*time.Second {
		t.Errorf("guess %s", g)
	}
	o.Rounds = 0
	if got := o.workloads(); got != nil {
		t.Errorf("without rounds: %v", got)
	}
}
