package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// compressed is content as gzip -9n writes it: without a name and a time.
func compressed(content []byte) []byte {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		panic(err) // the level is valid
	}
	w.Write(content) // to memory, which takes it
	w.Close()
	return out.Bytes()
}

// writeArchive writes an archive with the files in one directory, for systems
// without dpkg: the binary, what shells and man want, the licence.
func (r release) writeArchive(path string, tree []file) (err error) {
	licence, err := os.ReadFile(filepath.Join(r.source, "LICENSE"))
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	compressing := gzip.NewWriter(f)
	out := tar.NewWriter(compressing)
	for _, file := range append(tree, file{"LICENSE", 0o644, licence}) {
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: r.archived(file.path), Mode: int64(file.mode.Perm()), Size: int64(len(file.content)),
			ModTime: r.made, Format: tar.FormatUSTAR,
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := out.Write(file.content); err != nil {
			return err
		}
	}
	return errors.Join(out.Close(), compressing.Close())
}

// archived is where a file is in the archive.
func (r release) archived(installed string) string {
	top := fmt.Sprintf("vmsan-%s", r.version)
	switch {
	case installed == "usr/bin/vmsan":
		return top + "/vmsan"
	case strings.HasPrefix(installed, "usr/share/doc/vmsan/"), strings.HasPrefix(installed, "usr/lib/systemd/"):
		return top + "/" + path.Base(installed)
	case strings.HasPrefix(installed, "usr/"):
		return top + "/" + strings.TrimPrefix(installed, "usr/")
	}
	return top + "/" + installed
}
