package router

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/config"
)

// picture makes a topology of words such as "primary", "replica", "replica down",
// "replica lag=5s", "replica covered=7", "replica load=3", "replica weight=2",
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
			case "lag":
				s.Lag = d
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

func hintedPlan(p *Plan, target string) *Plan {
	return &Plan{Class: p.Class, Tag: p.Tag, Effects: p.Effects, Target: target}
}

func TestChoose(t *testing.T) {
	limit := Policy{MaxReplicaLag: 10 * time.Second}
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
		plan    *Plan
		write   int64
		want    int
		reason  Reason
	}{
		{"a write", []string{"replica", "primary"}, limit, writePlan, 0, 1, chosePrimary},
		{"a read", []string{"primary", "replica"}, limit, readPlan, 0, 1, choseReplica},
		{"no primary, a read", []string{"primary down", "replica"}, limit, readPlan, 0, 1, choseReplica},
		{"no primary, a write", []string{"primary down", "replica"}, limit, writePlan, 0, -1, refusedPrimary},
		{"nobody asked yet", []string{"unknown down", "unknown down"}, limit, readPlan, 0, -1, refusedPrimary},
		{"two primaries, a write", []string{"primary", "primary"}, limit, writePlan, 0, -1, refusedTwo},
		{"one of two primaries down", []string{"primary down", "primary"}, limit, writePlan, 0, 1, chosePrimary},
		{"no replica", []string{"primary", "replica down"}, limit, readPlan, 0, 0, choseNoReplica},
		{"lag at the limit", []string{"primary", "replica lag=10s"}, limit, readPlan, 0, 1, choseReplica},
		{"lag above the limit", []string{"primary", "replica lag=10.001s"}, limit, readPlan, 0, 0, choseLag},
		{"lag without a limit", []string{"primary", "replica lag=1h"}, Policy{}, readPlan, 0, 1, choseReplica},
		{"behind the write", []string{"primary", "replica covered=6ns"}, limit, readPlan, 7, 0, choseBehind},
		{"just past the write", []string{"primary", "replica covered=7ns"}, limit, readPlan, 7, 1, choseReplica},
		{"one behind, one not", []string{"primary", "replica covered=6ns", "replica covered=8ns"}, limit, readPlan, 7, 2, choseReplica},
		{"one lags, one is behind", []string{"primary", "replica lag=1h", "replica covered=1ns"}, limit, readPlan, 7, 0, choseBehind},
		{"split off", []string{"primary", "replica"}, off, readPlan, 0, 0, choseSplitOff},
		{"split off and a hint", []string{"primary", "replica"}, off, hintedPlan(readPlan, "replica"), 0, 0, choseSplitOff},
		{"hinted without a hint", []string{"primary", "replica"}, onHint, readPlan, 0, 0, choseNoHint},
		{"hinted with a hint", []string{"primary", "replica"}, onHint, hintedPlan(readPlan, "replica"), 0, 1, choseReplicaHint},
		{"hint for the primary", []string{"primary", "replica"}, limit, hintedPlan(readPlan, "primary"), 0, 0, chosePrimaryHint},
		{"hint on a function", []string{"primary", "replica"}, limit, hintedPlan(funcPlan, "replica"), 0, 1, choseReplicaHint},
		{"hint on a write", []string{"primary", "replica"}, limit, hintedPlan(writePlan, "replica"), 0, 0, chosePrimary},
		{"a group", []string{"primary", "replica", "replica group=slow"}, limit, hintedPlan(readPlan, "slow"), 0, 2, choseGroup},
		{"a group with the primary", []string{"primary group=slow", "replica"}, limit, hintedPlan(readPlan, "slow"), 0, 0, choseGroup},
		{"a group that is down", []string{"primary", "replica", "replica group=slow down"}, limit, hintedPlan(readPlan, "slow"), 0, 0, choseNoGroup},
		{"a group that nobody is in", []string{"primary", "replica"}, never, hintedPlan(readPlan, "slow"), 0, -1, refusedNoGroup},
		{"never, no replica", []string{"primary", "replica down"}, never, readPlan, 0, -1, refusedNoReplica},
		{"never, behind", []string{"primary", "replica covered=1ns"}, never, readPlan, 7, -1, refusedBehind},
		{"never, lag", []string{"primary", "replica lag=1m"}, never, readPlan, 0, -1, refusedLag},
		{"never is for reads", []string{"primary", "replica"}, never, writePlan, 0, 0, chosePrimary},
		{"alike, a write", []string{"primary down", "replica"}, alike, writePlan, 0, 1, choseAny},
		{"alike, never asked", []string{"unknown"}, alike, readPlan, 0, 0, choseAny},
		{"alike, two primaries", []string{"primary load=1ns", "primary"}, alike, writePlan, 0, 1, choseAny},
		{"alike, none is up", []string{"primary down", "replica down"}, alike, writePlan, 0, -1, refusedAny},
		{"alike, the first", []string{"replica load=9ns", "primary"}, first, writePlan, 0, 0, choseAny},
		{"alike, the first that is up", []string{"replica down", "replica lag=1h", "primary"}, first, writePlan, 0, 1, choseAny},
		{"the less loaded", []string{"primary", "replica load=3ns", "replica load=2ns"}, limit, readPlan, 0, 2, choseReplica},
		{"the less loaded for its weight", []string{"primary", "replica load=4ns weight=3ns", "replica load=2ns"}, limit, readPlan, 0, 1, choseReplica},
	} {
		t.Run(tt.name, func(t *testing.T) {
			topo := picture(t, tt.servers...)
			for range 5 { // whoever's turn it is
				got := topo.Choose(tt.policy, Request{Plan: tt.plan, LastWrite: tt.write})
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
				got[topo.Choose(Policy{LoadBalance: tt.balance, PrimaryReads: tt.reads}, Request{Plan: readPlan, LastWrite: 7}).Server]++
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
	plans := []*Plan{readPlan, writePlan, hintedPlan(readPlan, "g")}
	for _, b := range []config.LoadBalance{config.LoadBalanceLeastConn, config.LoadBalanceRoundRobin, config.LoadBalanceRandom} {
		n := testing.AllocsPerRun(100, func() {
			for _, p := range plans {
				topo.Choose(Policy{LoadBalance: b}, Request{Plan: p, LastWrite: 1})
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
		topo.Choose(Policy{}, Request{Plan: readPlan})
	}
}
