package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// unlimited is what v1 says of memory without a limit, or more: the largest
// number of pages.
const unlimited = 1 << 62

// Read returns the limits that the kernel holds a group to. What is not limited
// is 0. A group that does not exist is fs.ErrNotExist.
func Read(name string) (Limits, error) { return here().read(name) }

func (h host) read(name string) (l Limits, err error) {
	if err := checkName(name); err != nil {
		return l, err
	}
	cpu, err := h.cpus(name)
	if err != nil {
		return l, fmt.Errorf("read limits of cgroup %s: %w", name, err)
	}
	memory, memoryErr := h.number(name, "memory", "memory.limit_in_bytes", "memory.max")
	pids, pidsErr := h.number(name, "pids", "pids.max", "pids.max")
	if err := errors.Join(memoryErr, pidsErr); err != nil {
		return l, fmt.Errorf("read limits of cgroup %s: %w", name, err)
	}
	return Limits{CPUs: cpu, Memory: memory, PIDs: pids}, nil
}

func (h host) cpus(name string) (float64, error) {
	if h.unified {
		words, err := h.words(name, "", "cpu.max")
		if err != nil || len(words) != 2 {
			return 0, err
		}
		return ratio(words[0], words[1])
	}
	quota, err := h.words(name, "cpu", "cpu.cfs_quota_us")
	if err != nil {
		return 0, err
	}
	period, err := h.words(name, "cpu", "cpu.cfs_period_us")
	if err != nil {
		return 0, err
	}
	return ratio(strings.Join(quota, ""), strings.Join(period, ""))
}

// ratio of a quota to its period. "max" and "-1" mean no limit.
func ratio(quota, period string) (float64, error) {
	if quota == "max" || quota == "-1" {
		return 0, nil
	}
	q, err := strconv.ParseFloat(quota, 64)
	if err != nil {
		return 0, err
	}
	p, err := strconv.ParseFloat(period, 64)
	if err != nil {
		return 0, err
	}
	return q / p, nil
}

func (h host) number(name, controller, v1, v2 string) (int64, error) {
	file := v1
	if h.unified {
		file = v2
	}
	words, err := h.words(name, controller, file)
	if err != nil {
		return 0, err
	}
	if text := strings.Join(words, ""); text != "max" {
		n, err := strconv.ParseInt(text, 10, 64)
		if n >= unlimited {
			n = 0
		}
		return n, err
	}
	return 0, nil
}

// words are what is in a file of a group.
func (h host) words(name, controller, file string) ([]string, error) {
	if h.unified {
		controller = ""
	}
	text, err := os.ReadFile(filepath.Join(h.root, controller, name, file))
	return strings.Fields(string(text)), err
}
