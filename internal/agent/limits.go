package agent

import "time"

// What one guest may ask of its agent at most. They keep a broken or hostile caller from exhausting the
// agent, not from using the machine.
const (
	maxProcesses   = 4096           // running at once
	maxEnded       = 64             // ended ones remembered, of each kind: output kept, and not
	maxPath        = 4096           // bytes; PATH_MAX
	maxArguments   = 1 << 20        // bytes of argv with their NULs; the kernel allows a quarter of the stack
	maxEnvironment = 1 << 20        // bytes of an environment with its NULs
	maxTag         = 256            // bytes
	maxMessage     = 16 << 20       // bytes of one request message
	maxSubscribers = 64             // streams following one process
	maxWatchers    = 64             // each takes an inotify instance; the kernel gives root 128
	maxWatchedDirs = 8192           // of one recursive watch
	maxWatchQueue  = 16384          // events waiting for one polling client
	maxEntries     = 200_000        // of one ListDir
	maxDepth       = 64             // of one ListDir
	maxParts       = 4096           // files of one upload
	maxSources     = 1024           // of one compose
	maxAccountFile = 4 << 20        // bytes read of /etc/passwd and /etc/group
	maxMetadata    = 4096           // bytes of keys and values on one file
	maxMetadataKey = 246            // bytes; 255 less "user.e2b."
	maxEntropy     = 4096           // bytes of one Configure
	maxListening   = 4096           // sockets that the host is told of
	maxDoors       = 64             // ports and sockets that the host listens on at once
	maxResolvers   = 16             // servers, and search domains, each
	maxInitBody    = 1 << 20        // bytes of JSON for /init and /files/compose
	maxKeepalive   = 24 * time.Hour // longest interval a client may ask for
	acceptPause    = 100 * time.Millisecond
	dialTimeout    = 30 * time.Second // to a port or socket in the guest
)

const (
	// chunkSize is what is read from a pipe at most in one go, and so the largest data event. Each costs
	// some switches between goroutines, which are dear under emulation.
	chunkSize = 512 << 10
	// pipeSize is what a pipe is grown to once a command has filled one of the default size, which takes
	// CAP_SYS_RESOURCE. Each time it is emptied costs some switches of threads, and the port takes 1024 pages
	// at once.
	pipeSize = 2 << 20
	// queueBytes is how far a second stream on a process may lag before it is dropped.
	queueBytes = 4 << 20
	// defaultKeepBytes is how much output of a kept command there is to replay.
	defaultKeepBytes = 16 << 20
	// outputGrace is how long a command that has exited is given to see its output closed. Something else
	// holds it open by then: a child left in the background, which must not hold up the end.
	outputGrace = 250 * time.Millisecond
	// defaultKeepalive is how long a stream may be silent before a keepalive event, unless the client says.
	defaultKeepalive = 90 * time.Second
	// defaultPath is the PATH of a command whose environment sets none.
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// contractVersion is the version of the public contract the agent keeps to.
	contractVersion = "0.6.13"
)
