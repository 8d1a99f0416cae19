package testenv

import (
	"fmt"
	"os"
	"testing"

	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv/lab"
)

// world is the lab that this process is in.
var world *lab.Lab

// enterLab starts the tests anew in a lab, if they were asked to do what
// could reach a network.
func enterLab(prepare []func(store.Layout) error) (err error) {
	state := os.Getenv(stateVar)
	if os.Geteuid() != 0 || os.Getenv(rootVar) == "" && state == "" {
		return nil
	}
	if state != "" && !lab.Entering() {
		layout, err := store.NewLayout(state)
		if err != nil {
			return err
		}
		for _, step := range prepare {
			if err := step(layout); err != nil {
				return fmt.Errorf("prepare tests: %w", err)
			}
		}
	}
	world, err = lab.Enter()
	return err
}

func leaveLab() error {
	if world == nil {
		return nil
	}
	return world.Close()
}

// Lab is the network that root's tests have. Guests reach no other.
func Lab(t testing.TB) *lab.Lab {
	t.Helper()
	if world == nil {
		t.Fatal("this test has to be in a lab: its package's TestMain calls testenv.Main")
	}
	return world
}
