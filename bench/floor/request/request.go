// Package request has the bytes that the floor's machine understands.
package request

const (
	// Booted is what the console shows first.
	Booted = 0x06
	// Echo is sent back.
	Echo = 'e'
	// Spawn is sent back when /bin/true has run.
	Spawn = 's'
	// Dump is answered with DumpBytes zeros, Chunk at a time: a write to a
	// virtio-serial port takes no more.
	Dump      = 'd'
	Chunk     = 32 << 10
	DumpBytes = 200 << 20
)
