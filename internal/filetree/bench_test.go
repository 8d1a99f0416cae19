package filetree

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

const benchFiles = 2000

// smallTree makes a directory with many small files in it.
func smallTree(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	content := bytes.Repeat([]byte("x"), 1024)
	for i := range benchFiles {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%d", i)), content, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	return dir
}

// BenchmarkPackSmallFiles is for a file of 1 KiB.
func BenchmarkPackSmallFiles(b *testing.B) {
	dir := smallTree(b)
	for b.Loop() {
		if _, err := Pack(b.Context(), io.Discard, dir, PackOptions{Name: "."}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*benchFiles), "µs/file")
}

// BenchmarkUnpackSmallFiles is for a file of 1 KiB.
func BenchmarkUnpackSmallFiles(b *testing.B) {
	var stream bytes.Buffer
	if _, err := Pack(b.Context(), &stream, smallTree(b), PackOptions{Name: "."}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		dir, err := os.MkdirTemp(b.TempDir(), "")
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := Unpack(b.Context(), bytes.NewReader(stream.Bytes()), dir, UnpackOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*benchFiles), "µs/file")
}
