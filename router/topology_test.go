package router

import (
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/config"
)

// picture makes a topology of words such as "primary", "replica", "replica down",
// "replica late", "replica covered=7", "replica load=3", "replica weight=2",
// "replica group=fast".
func picture(t *testing.T, words ...string) *Topology {
	t.Helper()
	topo := &Topology{Turn: new(atomic.Uint64)}
	for _, w := range words {
		f := strings.Fields(w)
		s := Server{Addr: f[0], Up: true, Weight: 1, Covered: 1 << 62, Load: new(atomic.Int64)}
		switch f[0] {
		case "primary":
			s.Role = RolePrimary
		case "replica":
			s.Role = RoleReplica
		case "unknown":
		default:
			t.Fatalf("what is a %q?", f[0])
		}
		for _, x := range f[1:] {
			k, v, _ := strings.Cut(x, "=")
			d, _ := time.ParseDuration(v)
			n := int64(d)
			switch k {
			case "down":
				s.Up = false
			case "late":
				s.Late = true
			case "addr":
				s.Addr = v
			case "at":
				timeline, lsn, _ := strings.Cut(v, "/")
				tl, _ := strconv.Atoi(timeline)
				at, _ := strconv.Atoi(lsn)
				s.Timeline, s.LSN = uint32(tl), uint64(at)
			case "steady":
				s.Steady = n
			case "covered":
				s.Covered = n
			case "load":
				s.Load.Store(n)
			case "weight":
				s.Weight = int(n)
			case "group":
				s.Groups = append(s.Groups, v)
			default:
				t.Fatalf("what is %q?", x)
			}
		}
		topo.Servers = append(topo.Servers, s)
	}
	return topo
}

var (
	readPlan  = &Plan{Class: ClassRead, Tag: "SELECT"}
	writePlan = &Plan{Class: ClassPrimary, Tag: "INSERT", Effects: EffectWrite}
	funcPlan  = &Plan{Class: ClassPrimary, Tag: "SELECT", Effects: EffectWrite}
)

// wish is a plan with a target.
type wish struct {
	*Plan
	target string
	by     Source
}

func plain(p *Plan) wish { return wish{Plan: p} }

func hintedPlan(p *Plan, target string) wish { return wish{p, target, ByComment} }

func TestChoose(t *testing.T) {
	limit := Policy{}
	with := func(change func(*Policy)) Policy {
		p := limit
		change(&p)
		return p
	}
	never := with(func(p *Policy) { p.PrimaryReads = config.PrimaryReadsNever })
	off := with(func(p *Policy) { p.Split = config.SplitOff })
	alike := with(func(p *Policy) { p.Split = config.SplitAny })
	first := with(func(p *Policy) { p.Split, p.LoadBalance = config.SplitAny, config.LoadBalanceFirst })
	onHint := with(func(p *Policy) { p.Split = config.SplitHinted })
	for _, tt := range []struct {
		name    string
		servers []string
		policy  Policy
		plan    wish
		write   int64
		want    int
		reason  Reason
	}{
		{"a write", []string{"replica", "primary"}, limit, plain(writePlan), 0, 1, chosePrimary},
		{"a read", []string{"primary", "replica"}, limit, plain(readPlan), 0, 1, choseReplica},
		{"no primary, a read", []string{"primary down", "replica"}, limit, plain(readPlan), 0, 1, choseReplica},
		{"no primary, a write", []string{"primary down", "replica"}, limit, plain(writePlan), 0, -1, refusedPrimary},
		{"nobody asked yet", []string{"unknown down", "unknown down"}, limit, plain(readPlan), 0, -1, refusedPrimary},
		{"two primaries, a write", []string{"primary", "primary"}, limit, plain(writePlan), 0, -1, refusedTwo},
		{"one of two primaries down", []string{"primary down", "primary"}, limit, plain(writePlan), 0, 1, chosePrimary},
		{"no replica", []string{"primary", "replica down"}, limit, plain(readPlan), 0, 0, choseNoReplica},
		{"late", []string{"primary", "replica late"}, limit, plain(readPlan), 0, 0, choseLag},
		{"behind the write", []string{"primary", "replica covered=6ns"}, limit, plain(readPlan), 7, 0, choseBehind},
		{"just past the write", []string{"primary", "replica covered=7ns"}, limit, plain(readPlan), 7, 1, choseReplica},
		{"one behind, one not", []string{"primary", "replica covered=6ns", "replica covered=8ns"}, limit, plain(readPlan), 7, 2, choseReplica},
		{"one lags, one is behind", []string{"primary", "replica late", "replica covered=1ns"}, limit, plain(readPlan), 7, 0, choseBehind},
		{"split off", []string{"primary", "replica"}, off, plain(readPlan), 0, 0, choseSplitOff},
		{"split off and a hint", []string{"primary", "replica"}, off, hintedPlan(readPlan, "replica"), 0, 0, choseSplitOff},
		{"hinted without a hint", []string{"primary", "replica"}, onHint, plain(readPlan), 0, 0, choseNoHint},
		{"hinted with a hint", []string{"primary", "replica"}, onHint, hintedPlan(readPlan, "replica"), 0, 1, choseReplicaBy[ByComment]},
		{"hint for the primary", []string{"primary", "replica"}, limit, hintedPlan(readPlan, "primary"), 0, 0, chosePrimaryBy[ByComment]},
		{"hint on a function", []string{"primary", "replica"}, limit, hintedPlan(funcPlan, "replica"), 0, 1, choseReplicaBy[ByComment]},
		{"hint on a write", []string{"primary", "replica"}, limit, hintedPlan(writePlan, "replica"), 0, 0, chosePrimary},
		{"a group", []string{"primary", "replica", "replica group=slow"}, limit, hintedPlan(readPlan, "slow"), 0, 2, choseGroupBy[ByComment]},
		{"a group with the primary", []string{"primary group=slow", "replica"}, limit, hintedPlan(readPlan, "slow"), 0, 0, choseGroupBy[ByComment]},
		{"a group that is down", []string{"primary", "replica", "replica group=slow down"}, limit, hintedPlan(readPlan, "slow"), 0, 0, choseNoGroup},
		{"a group that nobody is in", []string{"primary", "replica"}, never, hintedPlan(readPlan, "slow"), 0, -1, refusedNoGroup},
		{"never, no replica", []string{"primary", "replica down"}, never, plain(readPlan), 0, -1, refusedNoReplica},
		{"never, behind", []string{"primary", "replica covered=1ns"}, never, plain(readPlan), 7, -1, refusedBehind},
		{"never, lag", []string{"primary", "replica late"}, never, plain(readPlan), 0, -1, refusedLag},
		{"never is for reads", []string{"primary", "replica"}, never, plain(writePlan), 0, 0, chosePrimary},
		{"alike, a write", []string{"primary down", "replica"}, alike, plain(writePlan), 0, 1, choseAny},
		{"alike, never asked", []string{"unknown"}, alike, plain(readPlan), 0, 0, choseAny},
		{"alike, two primaries", []string{"primary load=1ns", "primary"}, alike, plain(writePlan), 0, 1, choseAny},
		{"alike, none is up", []string{"primary down", "replica down"}, alike, plain(writePlan), 0, -1, refusedAny},
		{"alike, the first", []string{"replica load=9ns", "primary"}, first, plain(writePlan), 0, 0, choseAny},
		{"alike, the first that is up", []string{"replica down", "replica late", "primary"}, first, plain(writePlan), 0, 1, choseAny},
		{"a late group", []string{"primary", "replica group=slow late"}, limit, hintedPlan(readPlan, "slow"), 0, 0, choseGroupLag},
		{"a group that is behind", []string{"primary", "replica group=slow covered=1ns"}, limit, hintedPlan(readPlan, "slow"), 7, 0, choseGroupBehind},
		{"shadow", []string{"primary", "replica"}, with(func(p *Policy) { p.Split = config.SplitShadow }), hintedPlan(readPlan, "replica"), 0, 0, ReasonShadow},
		{"the less loaded", []string{"primary", "replica load=3ns", "replica load=2ns"}, limit, plain(readPlan), 0, 2, choseReplica},
		{"the less loaded for its weight", []string{"primary", "replica load=4ns weight=3ns", "replica load=2ns"}, limit, plain(readPlan), 0, 1, choseReplica},
	} {
		t.Run(tt.name, func(t *testing.T) {
			topo := picture(t, tt.servers...)
			for range 5 { // whoever's turn it is
				got := topo.Choose(tt.policy, &Request{Plan: tt.plan.Plan, Target: tt.plan.target, By: tt.plan.by, Seen: Seen{Floor: tt.write}})
				if got.Server != tt.want || got.Reason != tt.reason {
					t.Fatalf("server %d (%s), want %d (%s)", got.Server, got.Reason, tt.want, tt.reason)
				}
				if got.Server >= 0 && got.Role != topo.Servers[got.Server].Role && got.Reason != choseAny {
					t.Fatalf("role %v of server %d", got.Role, got.Server)
				}
			}
		})
	}
}

// TestChooseMonotonic: after a read, another server must show at least as much.
func TestChooseMonotonic(t *testing.T) {
	token := Position{2, 100}
	for _, tt := range []struct {
		name    string
		servers []string
		seen    Seen
		want    int
	}{
		{"nothing read yet", []string{"primary", "replica covered=0"}, Seen{}, 1},
		{"the same replica", []string{"primary", "replica addr=a covered=5ns", "replica addr=b covered=6ns"}, Seen{Last: 7, On: "a", Since: 3}, 1},
		{"another one that shows as much", []string{"primary", "replica addr=a down", "replica addr=b covered=7ns"}, Seen{Last: 7, On: "a", Since: 3}, 2},
		{"another one that does not", []string{"primary", "replica addr=a down", "replica addr=b covered=6ns"}, Seen{Last: 7, On: "a", Since: 3}, 0},
		{"the same one, restarted since", []string{"primary", "replica addr=a covered=5ns steady=4ns"}, Seen{Last: 7, On: "a", Since: 3}, 0},
		{"restarted, but caught up", []string{"primary", "replica addr=a covered=7ns steady=4ns"}, Seen{Last: 7, On: "a", Since: 3}, 1},
		{"the same one, before a write", []string{"primary", "replica addr=a covered=5ns"}, Seen{Floor: 6, Last: 7, On: "a", Since: 3}, 0},
		{"a token", []string{"primary", "replica covered=5ns at=2/99", "replica covered=5ns at=2/100"}, Seen{Floor: 9, Token: token}, 2},
		{"a token of another timeline", []string{"primary", "replica covered=5ns at=3/200", "replica covered=5ns at=1/200"}, Seen{Floor: 9, Token: token}, 0},
		{"a position that is not known now", []string{"primary", "replica covered=0 at=2/100"}, Seen{Floor: 9, Token: token}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			topo := picture(t, tt.servers...)
			for range 5 {
				got := topo.Choose(Policy{}, &Request{Plan: readPlan, Seen: tt.seen})
				if got.Server != tt.want || got.Behind != (tt.want == 0) {
					t.Fatalf("server %d (%s, behind: %v), want %d", got.Server, got.Reason, got.Behind, tt.want)
				}
			}
		})
	}
}

func TestPosition(t *testing.T) {
	for _, p := range []Position{{1, 0x16B374D848}, {}, {4294967295, 1<<64 - 1}} {
		if got, ok := ParsePosition(p.String()); !ok || got != p {
			t.Errorf("%v read as %v, %v", p, got, ok)
		}
	}
	for _, bad := range []string{"", "1", "1/2", "1/2/3/4", "x/1/1", "1/G/1", "-1/1/1", "1/100000000/0", "1/ 1/1"} {
		if p, ok := ParsePosition(bad); ok {
			t.Errorf("%q read as %v", bad, p)
		}
	}
}

func TestChooseShares(t *testing.T) {
	for _, tt := range []struct {
		name    string
		balance config.LoadBalance
		reads   config.PrimaryReads
		servers []string
		want    []int // per 6000
	}{
		{"round robin", config.LoadBalanceRoundRobin, config.PrimaryReadsFallback, []string{"primary", "replica", "replica weight=2ns"}, []int{0, 2000, 4000}},
		{"random", config.LoadBalanceRandom, config.PrimaryReadsFallback, []string{"primary", "replica", "replica weight=2ns"}, []int{0, 2000, 4000}},
		{"least of equals", config.LoadBalanceLeastConn, config.PrimaryReadsFallback, []string{"primary", "replica", "replica"}, []int{0, 3000, 3000}},
		{"shared with the primary", config.LoadBalanceRoundRobin, config.PrimaryReadsShare, []string{"primary", "replica", "replica"}, []int{2000, 2000, 2000}},
		{"one is behind", config.LoadBalanceRandom, config.PrimaryReadsFallback, []string{"primary", "replica", "replica covered=1ns"}, []int{0, 6000, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			topo := picture(t, tt.servers...)
			got := make([]int, len(tt.servers))
			for range 6000 {
				got[topo.Choose(Policy{LoadBalance: tt.balance, PrimaryReads: tt.reads}, &Request{Plan: readPlan, Seen: Seen{Floor: 7}}).Server]++
			}
			for i, want := range tt.want {
				if d := got[i] - want; d < -400 || d > 400 {
					t.Errorf("shares %v, want about %v", got, tt.want)
					break
				}
			}
		})
	}
}

func TestChooseAllocatesNothing(t *testing.T) {
	topo := picture(t, "primary", "replica", "replica group=g")
	plans := []wish{plain(readPlan), plain(writePlan), hintedPlan(readPlan, "g")}
	for _, b := range []config.LoadBalance{config.LoadBalanceLeastConn, config.LoadBalanceRoundRobin, config.LoadBalanceRandom} {
		n := testing.AllocsPerRun(100, func() {
			for _, p := range plans {
				topo.Choose(Policy{LoadBalance: b}, &Request{Plan: p.Plan, Target: p.target, By: p.by, Seen: Seen{Floor: 1, Last: 2, On: "replica"}})
			}
		})
		if n != 0 {
			t.Errorf("%v: %v allocations", b, n)
		}
	}
}

func BenchmarkChoose(b *testing.B) {
	topo := &Topology{Turn: new(atomic.Uint64)}
	for i := range 3 {
		topo.Servers = append(topo.Servers, Server{Role: RoleReplica, Up: true, Weight: 1 + i, Load: new(atomic.Int64)})
	}
	b.ReportAllocs()
	for b.Loop() {
		topo.Choose(Policy{}, &Request{Plan: readPlan})
	}
}
