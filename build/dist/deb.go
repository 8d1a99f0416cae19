package main

import (
	"bytes"
	"crypto/md5"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// qemu is the package with the emulator of an architecture.
var qemu = map[string]string{"amd64": "qemu-system-x86", "arm64": "qemu-system-arm"}

// control describes the package; see deb-control(5).
func (r release) control(tree []file) string {
	size := 0
	for _, f := range tree {
		size += len(f.content)
	}
	return fmt.Sprintf(`Package: vmsan
Version: %s
Architecture: %s
Maintainer: The vmsan developers <vmsan@localhost>
Installed-Size: %d
Depends: %s, mmdebstrap, e2fsprogs
Recommends: ca-certificates
Section: admin
Priority: optional
Homepage: https://github.com/vmsan/vmsan
Description: runs untrusted code in microVMs
 vmsan runs code nobody has to trust, each piece in a microVM of its own with
 its own kernel, without a daemon. Where KVM works it is used; elsewhere the
 same commands run by software emulation.
 .
 Sandboxes that were created to be are started with the host.
`, r.version, r.arch, (size+1023)/1024, qemu[r.arch])
}

// scripts are what dpkg runs.
var scripts = []string{"postinst", "prerm", "postrm"}

// writeDeb has dpkg-deb pack the files.
func (r release) writeDeb(path string, tree []file) error {
	if qemu[r.arch] == "" {
		return fmt.Errorf("nobody has said which package has QEMU for %s", r.arch)
	}
	top, err := os.MkdirTemp(filepath.Dir(path), "deb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(top)
	var sums strings.Builder
	for _, f := range tree {
		fmt.Fprintf(&sums, "%x  %s\n", md5.Sum(f.content), f.path)
	}
	all := append([]file{{"DEBIAN/control", 0o644, []byte(r.control(tree))}, {"DEBIAN/md5sums", 0o644, []byte(sums.String())}}, tree...)
	for _, name := range scripts {
		content, err := os.ReadFile(filepath.Join(r.source, "build/dist/files", name))
		if err != nil {
			return err
		}
		all = append(all, file{"DEBIAN/" + name, 0o755, content})
	}
	for _, f := range all {
		if err := stage(top, f); err != nil {
			return err
		}
	}
	if err := os.Chmod(top, 0o755); err != nil {
		return err
	}
	pack := exec.Command("dpkg-deb", "--root-owner-group", "-Z"+r.compression, "--build", top, path)
	// Times later than that are this one in the package.
	pack.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", r.made.Unix()))
	if out, err := pack.CombinedOutput(); err != nil {
		return fmt.Errorf("dpkg-deb: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// stage writes a file below top, with modes that do not depend on the umask.
func stage(top string, f file) error {
	path := top
	parts := strings.Split(f.path, "/")
	for _, part := range parts[:len(parts)-1] {
		path = filepath.Join(path, part)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o755); err != nil {
			return err
		}
	}
	path = filepath.Join(top, f.path)
	if err := os.WriteFile(path, f.content, f.mode); err != nil {
		return err
	}
	return os.Chmod(path, f.mode)
}
