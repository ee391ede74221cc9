// Package suite stands for a driver's tests.
package suite

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestConnect passes in every way.
func TestConnect(t *testing.T) {
	c, err := net.Dial("tcp", "127.0.0.1:"+os.Getenv("PGPORT"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// TestUnsteady fails once through each proxy.
func TestUnsteady(t *testing.T) {
	mark := filepath.Join(os.TempDir(), "seen-"+os.Getenv("PGPORT"))
	if _, err := os.Stat(mark); err == nil || os.Getenv("PGPORT") == os.Getenv("DIRECT") {
		return
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Error("the first time")
}

// TestPlace knows where it runs.
func TestPlace(t *testing.T) {
	direct := os.Getenv("PGPORT") == os.Getenv("DIRECT")
	t.Run("direct only", func(t *testing.T) {
		if !direct {
			t.Error("not this way")
		}
	})
	t.Run("excepted", func(t *testing.T) {
		if !direct {
			t.Error("nor this")
		}
	})
	t.Run("never", func(t *testing.T) { t.Fatal("never") })
	t.Run("skipped", func(t *testing.T) { t.Skip("always") })
	t.Run("proxy only", func(t *testing.T) {
		if direct {
			t.Error("not direct")
		}
	})
	t.Run(t.TempDir(), func(t *testing.T) {})
	if !direct {
		t.FailNow()
	}
	t.Run("beyond", func(t *testing.T) {})
}
