package monitor

import (
	"strconv"
	"strings"
)

// Sizes of the headers in front of the pages of the WAL: XLogLongPageHeaderData
// on the first page of a segment, XLogPageHeaderData on the others.
const (
	longPageHeader  = 40
	shortPageHeader = 24
)

// walLayout is how the WAL of a server is cut, in bytes.
type walLayout struct {
	segment, page uint64
}

// defaultLayout is that of a server which does not tell.
var defaultLayout = walLayout{segment: 16 << 20, page: 8 << 10}

// valid reports whether the sizes can be those of a server.
func (l walLayout) valid() bool {
	return l.page > longPageHeader && l.segment >= l.page && l.segment%l.page == 0
}

// end returns where the last record before an insert position ends. At the start
// of a page the insert position is behind the page's header, but the record
// before it ended in front of the header, and that is all a replica can say that
// it has replayed.
func (l walLayout) end(lsn uint64) uint64 {
	inSegment := lsn % l.segment
	switch {
	case inSegment < l.page && inSegment == longPageHeader:
		return lsn - longPageHeader
	case inSegment >= l.page && lsn%l.page == shortPageHeader:
		return lsn - shortPageHeader
	}
	return lsn
}

// parseLSN reads a pg_lsn such as 16/B374D848.
func parseLSN(s string) (uint64, bool) {
	hi, lo, ok := strings.Cut(s, "/")
	if !ok {
		return 0, false
	}
	h, err := strconv.ParseUint(hi, 16, 32)
	if err != nil {
		return 0, false
	}
	l, err := strconv.ParseUint(lo, 16, 32)
	return h<<32 | l, err == nil
}
