package monitor

import "testing"

func TestEndOfWAL(t *testing.T) {
	const mib = 1 << 20
	small := walLayout{segment: mib, page: 8 << 10}
	for _, c := range []struct {
		name      string
		layout    walLayout
		lsn, want uint64
	}{
		{"inside a page", defaultLayout, 0x3000100, 0x3000100},
		{"behind the header of a segment", defaultLayout, 0x3000028, 0x3000000},
		{"behind the header of a page", defaultLayout, 0x3002018, 0x3002000},
		{"the first page has no short header", defaultLayout, 0x3000018, 0x3000018},
		{"no long header inside a segment", defaultLayout, 0x3002028, 0x3002028},
		{"start of a page", defaultLayout, 0x3002000, 0x3002000},
		{"start of a segment", defaultLayout, 0x4000000, 0x4000000},
		{"short header offset inside a page", defaultLayout, 0x3002118, 0x3002118},
		{"segment of 1 MiB", small, 0x3100028, 0x3100000},
		{"the same offset in a larger segment", defaultLayout, 0x3100028, 0x3100028},
		{"first page in a segment of 1 MiB", small, 0x3100018, 0x3100018},
		{"the same offset in a larger segment, short", defaultLayout, 0x3100018, 0x3100000},
		{"high half", defaultLayout, 0x7f_02002018, 0x7f_02002000},
		{"zero", defaultLayout, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.layout.end(c.lsn); got != c.want {
				t.Errorf("end(%#x) = %#x, want %#x", c.lsn, got, c.want)
			}
		})
	}
}

func TestWALLayoutValid(t *testing.T) {
	for _, c := range []struct {
		layout walLayout
		want   bool
	}{
		{defaultLayout, true},
		{walLayout{1 << 30, 64 << 10}, true},
		{walLayout{}, false},
		{walLayout{16 << 20, 0}, false},
		{walLayout{16 << 20, 24}, false},
		{walLayout{4 << 10, 8 << 10}, false},
		{walLayout{16<<20 + 1, 8 << 10}, false},
	} {
		if got := c.layout.valid(); got != c.want {
			t.Errorf("%+v: valid %v, want %v", c.layout, got, c.want)
		}
	}
}

func TestParseLSN(t *testing.T) {
	for _, c := range []struct {
		text string
		want uint64
		ok   bool
	}{
		{"0/0", 0, true},
		{"16/B374D848", 0x16_b374d848, true},
		{"FFFFFFFF/FFFFFFFF", 1<<64 - 1, true},
		{"", 0, false},
		{"16", 0, false},
		{"/1", 0, false},
		{"1/", 0, false},
		{"1/100000000", 0, false},
		{"x/1", 0, false},
		{"1/-1", 0, false},
	} {
		got, ok := parseLSN(c.text)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("parseLSN(%q) = %#x, %v", c.text, got, ok)
		}
	}
}
