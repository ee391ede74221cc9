package netio

// Sizes that tests are written against.
const (
	SmallBuffer = smallBuffer
	LargeBuffer = largeBuffer
	CarryCopy   = carryCopy
	Poison      = poison
)

// Pinned returns the sizes of the read buffer and of the carried bytes that a
// connection keeps. Its Loop must be parked or over.
func (c *Conn) Pinned() (buffer, carry int) {
	if c.buf != nil {
		buffer = len(*c.buf)
	}
	return buffer, cap(c.carry)
}
