package backend

import (
	"testing"

	"pgproxy/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }
