package jail

import "golang.org/x/sys/unix"

// auditArch is how filters call this architecture.
const auditArch = unix.AUDIT_ARCH_AARCH64
