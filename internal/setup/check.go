package setup

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/store"
)

// Item is something that setup would do.
type Item struct {
	Step   Step
	Detail string
}

// Check tells what Run would have to do for sandboxes to start, without doing
// it: nothing, if the list is empty. It looks at no file's every byte, and
// boots nothing. agent is the one that Run would be given.
func Check(l store.Layout, agent []byte) ([]Item, error) {
	r, err := Load(l)
	if api.HasCode(err, api.ErrSetupRequired) {
		return []Item{{StepKernel, err.Error()}, {StepImage, err.Error()}, {StepProbe, err.Error()}}, nil
	}
	if err != nil {
		return nil, err
	}
	var missing []Item
	for _, check := range []func() (Item, error){
		func() (Item, error) { return checkKernel(l, r, agent) },
		func() (Item, error) { return checkImage(l, r) },
		func() (Item, error) { return checkAccel(r), nil },
	} {
		item, err := check()
		if err != nil {
			return nil, err
		}
		if item != (Item{}) {
			missing = append(missing, item)
		}
	}
	return missing, nil
}

func checkKernel(l store.Layout, r Record, agent []byte) (Item, error) {
	if r.Kernel == "" {
		return Item{StepKernel, "no kernel is installed"}, nil
	}
	k, err := kernel.Load(l, r.Kernel)
	if errors.Is(err, fs.ErrPermission) {
		return Item{}, api.Errorf(api.ErrPermission, "%w", err)
	}
	if err != nil {
		return Item{StepKernel, err.Error()}, nil
	}
	if k.AgentDigest != hexSum(agent) {
		return Item{StepKernel, fmt.Sprintf("kernel %s has the agent of another vmsan", k.Version)}, nil
	}
	return Item{}, nil
}

func checkImage(l store.Layout, r Record) (Item, error) {
	if r.Image == "" {
		return Item{}, nil // setup was told to leave it out
	}
	images := image.Store{Layout: l}
	img, err := images.Resolve(r.ImageName)
	if err == nil {
		_, err = images.Check(img.Digest)
	}
	if api.HasCode(err, api.ErrImageNotFound) || api.HasCode(err, api.ErrImageCorrupt) {
		return Item{StepImage, err.Error()}, nil
	}
	return Item{}, err
}

func checkAccel(r Record) Item {
	if r.Accel == "" {
		return Item{StepProbe, "no accelerator has booted the kernel"}
	}
	for _, v := range r.Verdicts {
		if v.Accel == r.Accel && v.Kernel == r.Kernel {
			return Item{}
		}
	}
	return Item{StepProbe, fmt.Sprintf("accelerator %s was tried with another kernel", r.Accel)}
}
