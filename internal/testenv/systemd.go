package testenv

import (
	"context"

	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/store"
)

// SystemdImage is the name of an image whose init is systemd.
const SystemdImage = "systemd-test"

// BuildSystemdImage makes it, for a package's Main. It takes half a minute,
// where it was not done before.
func BuildSystemdImage(layout store.Layout) error {
	images := image.Store{Layout: layout}
	if _, err := images.Resolve(SystemdImage); err == nil {
		return nil
	}
	_, err := images.BuildDebian(context.Background(), image.DebianOptions{
		Name: SystemdImage, Include: []string{"dbus", "procps", "systemd", "systemd-sysv"},
	})
	return err
}
