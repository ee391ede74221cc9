package proxy

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"pgproxy/router"
)

func TestRouteCounts(t *testing.T) {
	var r routes
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				r.add("app", router.RoleReplica, "replica: read")
				r.add("app", router.RolePrimary, "primary: hint")
			}
		})
	}
	wg.Wait()
	want := []RouteCount{{"app", router.RolePrimary, "primary: hint", 8000}, {"app", router.RoleReplica, "replica: read", 8000}}
	if got := r.list(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v", got)
	}
	database := strings.Clone("app")
	if n := testing.AllocsPerRun(100, func() { r.add(database, router.RoleReplica, "replica: read") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestRoutesAreBounded: clients of "*" cannot fill the memory with names.
func TestRoutesAreBounded(t *testing.T) {
	var r routes
	for i := range maxRoutes + 100 {
		r.add(fmt.Sprint(i), router.RolePrimary, "x")
	}
	got := r.list()
	if len(got) != maxRoutes+1 || got[0] != (RouteCount{"(other)", router.RolePrimary, "x", 100}) {
		t.Errorf("%d keys, the first is %v", len(got), got[0])
	}
}

func BenchmarkRoutes(b *testing.B) {
	var r routes
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.add("app", router.RoleReplica, "replica: read")
		}
	})
}
