package link

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Identity is who a guest is: told to it after each boot and restore, as soon as
// its clock is right.
type Identity struct {
	Hostname  string            `json:"hostname"`
	MachineID string            `json:"machine_id"` // 32 hex digits
	Env       map[string]string `json:"env,omitempty"`
	User      string            `json:"user,omitempty"`
	Workdir   string            `json:"workdir,omitempty"`
	// Main is the main process. Optional.
	Main *Main `json:"main,omitempty"`
	// Address is the guest's on its network, and Gateway the way to all
	// others and its resolver. Neither without a network.
	Address netip.Prefix `json:"address,omitzero"`
	Gateway netip.Addr   `json:"gateway,omitzero"`

	// Volumes are on the machine's disks behind the guest's own, in their
	// order.
	Volumes []Volume `json:"volumes,omitempty"`

	// Restored is told to a guest that is a copy of another, or the same at an
	// earlier time, and BootID is its new boot id, a UUID.
	Restored bool   `json:"restored,omitempty"`
	BootID   string `json:"boot_id,omitempty"`
	// Pattern is told to a guest that is about to be copied before anybody
	// uses it: what was put off, or will be done in every copy, it does now.
	Pattern bool `json:"pattern,omitempty"`

	// Entropy is that of the moment in which it is told.
	Entropy []byte `json:"-"`
}

// Volume is where the guest is to have a disk that outlives it.
type Volume struct {
	Path     string `json:"path"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// The kinds of volumes, as they are told.
const (
	volumeWord         = "volume"
	readOnlyVolumeWord = "read_only_volume"
)

// encode writes an identity as hex digits: pairs of names and values, with a
// NUL behind each, which costs a guest next to nothing to read. The time is for
// guests of an earlier version, as snapshots may have: they set their clock by
// it.
func (id Identity) encode(now time.Time) (string, error) {
	var b strings.Builder
	var err error
	add := func(name, value string) {
		if strings.ContainsRune(value, 0) {
			err = errors.Join(err, fmt.Errorf("the guest's %s has a NUL byte", name))
		}
		b.WriteString(name + "\x00" + value + "\x00")
	}
	add("time", strconv.FormatInt(now.UnixNano(), 10))
	add("entropy", hex.EncodeToString(id.Entropy))
	add("hostname", id.Hostname)
	add("machine_id", id.MachineID)
	for name, value := range id.Env {
		add("env", name+"="+value)
	}
	add("user", id.User)
	add("workdir", id.Workdir)
	if id.Main != nil {
		for _, arg := range id.Main.Args {
			add("main", arg)
		}
		add("restart", id.Main.Restart)
		add("stop_signal", strconv.Itoa(id.Main.StopSignal))
	}
	for _, v := range id.Volumes {
		if v.ReadOnly {
			add(readOnlyVolumeWord, v.Path)
		} else {
			add(volumeWord, v.Path)
		}
	}
	if id.BootID != "" {
		add("boot_id", id.BootID)
	}
	if id.Restored {
		add("restored", "yes")
	}
	if id.Pattern {
		add("pattern", "yes")
	}
	if id.Address.IsValid() {
		add("address", id.Address.String())
		add("gateway", id.Gateway.String())
	}
	return hex.EncodeToString([]byte(b.String())), err
}

var errIdentity = errors.New("the host's word of who this guest is cannot be read")

// decodeIdentity passes over names that it does not know: a newer host's.
func decodeIdentity(digits string) (id Identity, err error) {
	raw, err := hex.DecodeString(digits)
	if err != nil {
		return id, errIdentity
	}
	fields := strings.Split(string(raw), "\x00")
	if len(fields)%2 == 0 {
		return id, errIdentity
	}
	id.Env, id.Entropy = map[string]string{}, []byte{}
	for i := 0; i+1 < len(fields); i += 2 {
		if err := id.set(fields[i], fields[i+1]); err != nil {
			return Identity{}, err
		}
	}
	if id.Address.IsValid() != id.Gateway.IsValid() {
		return Identity{}, errIdentity // one is of no use without the other
	}
	return id, nil
}

func (id *Identity) set(name, value string) error {
	switch name {
	case "entropy":
		entropy, err := hex.DecodeString(value)
		if err != nil {
			return errIdentity
		}
		id.Entropy = entropy
	case "hostname":
		id.Hostname = value
	case "machine_id":
		id.MachineID = value
	case "env":
		key, text, ok := strings.Cut(value, "=")
		if !ok {
			return errIdentity
		}
		id.Env[key] = text
	case "user":
		id.User = value
	case "workdir":
		id.Workdir = value
	case "main":
		if id.Main == nil {
			id.Main = &Main{}
		}
		id.Main.Args = append(id.Main.Args, value)
	case "restart", "stop_signal":
		return id.setMain(name, value)
	case volumeWord, readOnlyVolumeWord:
		id.Volumes = append(id.Volumes, Volume{Path: value, ReadOnly: name == readOnlyVolumeWord})
	case "boot_id":
		id.BootID = value
	case "restored":
		id.Restored = true
	case "pattern":
		id.Pattern = true
	case "address":
		return id.Address.UnmarshalText([]byte(value))
	case "gateway":
		return id.Gateway.UnmarshalText([]byte(value))
	}
	return nil
}

// setMain reads what comes behind the main process's words.
func (id *Identity) setMain(name, value string) error {
	if id.Main == nil {
		return errIdentity
	}
	if name == "restart" {
		id.Main.Restart = value
		return nil
	}
	number, err := strconv.Atoi(value)
	if err != nil || number < 0 || number > 64 {
		return errIdentity
	}
	id.Main.StopSignal = number
	return nil
}
