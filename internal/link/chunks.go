package link

import "sync"

// chunkSize is how much of a stream is buffered together, in bytes.
const chunkSize = 64 << 10

var chunkPool = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// chunks is a queue of bytes. Each but the last is full, so that however few
// bytes come at a time, it takes no more memory than those and one chunk.
type chunks struct {
	list    []*[chunkSize]byte
	start   int  // where the first one begins
	end     int  // where the last one ends
	filling bool // what fill returned is being written to
}

// fill returns a place for up to most bytes, to be written to before filled
// is called. Taking from the queue may go on meanwhile.
func (c *chunks) fill(most int) []byte {
	if len(c.list) == 0 {
		c.start = 0
	}
	if len(c.list) == 0 || c.end == chunkSize {
		c.list = append(c.list, chunkPool.Get().(*[chunkSize]byte))
		c.end = 0
	}
	c.filling = true
	last := c.list[len(c.list)-1]
	return last[c.end:min(c.end+most, chunkSize)]
}

func (c *chunks) filled(n int) {
	c.end += n
	c.filling = false
	c.tidy()
}

// first returns the oldest bytes, none if there are none.
func (c *chunks) first() []byte {
	switch len(c.list) {
	case 0:
		return nil
	case 1:
		return c.list[0][c.start:c.end]
	}
	return c.list[0][c.start:]
}

// all returns the bytes of the oldest chunks, as many of them as to has room
// for.
func (c *chunks) all(to [][]byte) [][]byte {
	for i := range c.list[:min(len(c.list), cap(to))] {
		part := c.list[i][:]
		if i == len(c.list)-1 {
			part = part[:c.end]
		}
		if i == 0 {
			part = part[c.start:]
		}
		to = append(to, part)
	}
	return to
}

// drop removes the first n bytes.
func (c *chunks) drop(n int) {
	for n > 0 {
		some := min(n, len(c.first()))
		c.start += some
		n -= some
		c.tidy()
	}
}

// tidy gives back the first chunk if it is empty.
func (c *chunks) tidy() {
	end := chunkSize
	switch len(c.list) {
	case 0:
		return
	case 1:
		end = c.end
		if c.filling {
			return
		}
	}
	if c.start < end {
		return
	}
	chunkPool.Put(c.list[0])
	c.list[0] = nil
	c.list = c.list[1:]
	c.start = 0
}
