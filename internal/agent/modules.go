package agent

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// modulesDir is where the initramfs keeps the kernel's modules, and
// modulesList names them in the order to load them, a path per line.
const (
	modulesDir  = "/modules"
	modulesList = modulesDir + "/load.txt"
)

// loadModules loads what modulesList says. A kernel with everything built in
// has none.
func loadModules() error {
	list, err := os.Open(modulesList)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer list.Close()
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		if path := strings.TrimSpace(lines.Text()); path != "" {
			if err := loadModule(path); err != nil {
				return err
			}
		}
	}
	return lines.Err()
}

func loadModule(path string) error {
	if !filepath.IsAbs(path) {
		path = filepath.Join(modulesDir, path)
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	err = unix.FinitModule(int(file.Fd()), "", 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", filepath.Base(path), err)
	}
	return nil
}
