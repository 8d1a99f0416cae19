package contract

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// memoryFiles is what the guest has in its memory.
const memoryFiles = "/dev/shm"

// saved is a machine at rest, in the form of the contract's own.
type saved struct {
	Machine machine
	Memory  int64 // bytes of the memory's file that are used
}

func (s *server) save(statePath, memoryPath string) error {
	if s.state != paused {
		return faultf("Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running")
	}
	// Whoever has a connection loses it, here and in every copy.
	s.guest.reset()
	files, err := readFiles()
	if err != nil {
		return err
	}
	memory, err := json.Marshal(files)
	if err != nil {
		return err
	}
	state, err := json.Marshal(saved{s.config, int64(len(memory))})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(state)
	if err := writeFile(statePath, os.O_TRUNC, append(sum[:], state...), 0); err != nil {
		return faultf("Create snapshot error: Cannot perform open on the snapshot backing file: %w", err)
	}
	mib, _ := s.config["/machine-config"]["mem_size_mib"].(float64)
	if err := writeFile(memoryPath, 0, memory, int64(mib)<<20); err != nil {
		return faultf("Create snapshot error: Cannot perform open on the memory backing file: %w", err)
	}
	return nil
}

func writeFile(path string, flags int, text []byte, size int64) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|flags, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if size > 0 {
		if err := file.Truncate(size); err != nil {
			return err
		}
	}
	if _, err := file.WriteAt(text, 0); err != nil {
		return err
	}
	return file.Sync()
}

func readFiles() (map[string][]byte, error) {
	files := map[string][]byte{}
	entries, err := os.ReadDir(memoryFiles)
	if errors.Is(err, os.ErrNotExist) {
		return files, nil
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(memoryFiles, e.Name()))
		if err != nil {
			return nil, err
		}
		files[e.Name()] = text
	}
	return files, err
}

const maxState = 1 << 20

func (s *server) load(fields map[string]any) error {
	if s.touched {
		return faultf("Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.")
	}
	memory := fields["mem_backend"].(map[string]any)["backend_path"].(string)
	if err := s.read(fields["snapshot_path"].(string), memory); err != nil {
		return faultf("Load snapshot error: Failed to restore from snapshot: %w", err)
	}
	if err := s.begin(); err != nil {
		return faultf("Load snapshot error: Failed to restore from snapshot: %w", err)
	}
	s.state = paused
	if fields["resume_vm"] == true {
		s.state = running
		return s.guest.resume()
	}
	return nil
}

func (s *server) read(statePath, memoryPath string) error {
	for _, path := range []string{statePath, memoryPath} {
		if err := cannotWrite(path); err != nil {
			return err
		}
	}
	file, err := os.Open(statePath)
	if err != nil {
		return err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxState))
	if err != nil {
		return err
	}
	if len(raw) < sha256.Size {
		return faultf("Failed to get snapshot state from file: it is too short")
	}
	if sum := sha256.Sum256(raw[sha256.Size:]); !bytes.Equal(sum[:], raw[:sha256.Size]) {
		return faultf("Failed to get snapshot state from file: CRC64 validation failed")
	}
	var from saved
	if err := json.Unmarshal(raw[sha256.Size:], &from); err != nil {
		return err
	}
	s.config = from.Machine
	for _, path := range s.config.parts() {
		if path == "/boot-source" {
			continue // it is in the memory
		}
		if err := s.config.try(path, s.config[path]); err != nil {
			return err
		}
	}
	delete(s.config, "/boot-source")
	return writeFiles(memoryPath, from.Memory)
}

func writeFiles(memoryPath string, used int64) error {
	memory, err := os.Open(memoryPath)
	if err != nil {
		return err
	}
	defer memory.Close()
	var files map[string][]byte
	if err := json.NewDecoder(io.LimitReader(memory, used)).Decode(&files); err != nil {
		return fmt.Errorf("read memory: %w", err)
	}
	if err := os.MkdirAll(memoryFiles, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(memoryFiles, filepath.Base(name)), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}
