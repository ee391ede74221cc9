package netio

import "sync"

// Buffer sizes in bytes. A connection starts each busy period with a small
// buffer and takes a large one when a read has filled the small one.
const (
	smallBuffer = 16 << 10
	largeBuffer = 128 << 10
	// carryCopy is the largest unfinished message that is copied into a slice of
	// its own size while its connection waits for more, so that the buffer can be
	// given back.
	carryCopy = 2 << 10
)

var (
	smallPool = sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }}
	largePool = sync.Pool{New: func() any { b := make([]byte, largeBuffer); return &b }}
)

func getBuffer(large bool) *[]byte {
	if large {
		return largePool.Get().(*[]byte)
	}
	return smallPool.Get().(*[]byte)
}

// putBuffer gives a buffer back. Buffers of other sizes, grown for one long
// message, are left to the garbage collector.
func putBuffer(b *[]byte) {
	if b == nil {
		return
	}
	if poison {
		for i := range *b {
			(*b)[i] = 0xDB
		}
	}
	switch len(*b) {
	case smallBuffer:
		smallPool.Put(b)
	case largeBuffer:
		largePool.Put(b)
	}
}
