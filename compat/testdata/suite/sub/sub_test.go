package sub

import "testing"

func TestNothing(t *testing.T) {}
