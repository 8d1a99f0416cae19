// Package request has the bytes that the floor's machine understands.
package request

const (
	// Booted is what the console shows first.
	Booted = 0x06
	// Echo is sent back.
	Echo = 'e'
	// Spawn is sent back when /bin/true has run.
	Spawn = 's'
	// Produce runs Producer with the port as its standard output.
	Produce = 'p'
	// Dump is answered with DumpBytes zeros, Chunk at a time: a write to a
	// virtio-serial port takes no more.
	Dump      = 'd'
	Chunk     = 32 << 10
	DumpBytes = 200 << 20
	// Sink is followed by DumpBytes bytes, and sent back when they were read.
	Sink = 'k'
)

// Producer is a command that writes DumpBytes to its standard output.
var Producer = []string{"/bin/dd", "if=/dev/zero", "bs=32k", "count=6400", "status=none"}
