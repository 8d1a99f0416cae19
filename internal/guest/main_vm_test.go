package guest_test

import (
	"context"
	"os"
	"testing"

	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m, buildSystemdImage)) }

// systemdImage is an image whose init is systemd.
const systemdImage = "systemd-test"

// buildSystemdImage takes half a minute, where it was not done before.
func buildSystemdImage(layout store.Layout) error {
	images := image.Store{Layout: layout}
	if _, err := images.Resolve(systemdImage); err == nil {
		return nil
	}
	_, err := images.BuildDebian(context.Background(), image.DebianOptions{
		Name: systemdImage, Include: []string{"dbus", "procps", "systemd", "systemd-sysv"},
	})
	return err
}
