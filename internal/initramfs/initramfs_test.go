package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/u-root/u-root/pkg/cpio"
)

var testSpec = Spec{
	Agent:   []byte("agent"),
	Modules: []Module{{"virtio", []byte("first")}, {"overlay", []byte("second")}},
}

const wantListing = `dev                     ino 1 mode 040755 links 2 time 0 size 0 dev 0:0
dev/console             ino 2 mode 020600 links 1 time 0 size 0 dev 5:1
dev/null                ino 3 mode 020666 links 1 time 0 size 0 dev 1:3
init                    ino 4 mode 0100755 links 1 time 0 size 5 dev 0:0
mnt                     ino 5 mode 040755 links 2 time 0 size 0 dev 0:0
modules                 ino 6 mode 040755 links 2 time 0 size 0 dev 0:0
modules/load.txt        ino 7 mode 0100444 links 1 time 0 size 39 dev 0:0
modules/overlay.ko      ino 8 mode 0100444 links 1 time 0 size 6 dev 0:0
modules/virtio.ko       ino 9 mode 0100444 links 1 time 0 size 5 dev 0:0
proc                    ino 10 mode 040755 links 2 time 0 size 0 dev 0:0
sys                     ino 11 mode 040755 links 2 time 0 size 0 dev 0:0
`

func list(t *testing.T, archive []byte) string {
	t.Helper()
	var b strings.Builder
	r := cpio.Newc.Reader(bytes.NewReader(archive))
	for {
		rec, err := r.ReadRecord()
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%-23s ino %d mode %#o links %d time %d size %d dev %d:%d\n",
			rec.Name, rec.Ino, rec.Mode, rec.NLink, rec.MTime, rec.FileSize, rec.Rmajor, rec.Rminor)
	}
}

func archive(t *testing.T, spec Spec) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, spec); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWrite(t *testing.T) {
	if diff := cmp.Diff(wantListing, list(t, archive(t, testSpec))); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
}

func TestWriteIsReproducible(t *testing.T) {
	if !bytes.Equal(archive(t, testSpec), archive(t, testSpec)) {
		t.Error("two archives of one Spec differ")
	}
}

func TestReadReturnsWhatWasWritten(t *testing.T) {
	got, err := Read(bytes.NewReader(archive(t, testSpec)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(testSpec, got); diff != "" {
		t.Errorf("Spec (-written +read):\n%s", diff)
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, spec := range map[string]Spec{
		"no agent":          {},
		"module twice":      {Agent: []byte("a"), Modules: []Module{{"x", []byte("1")}, {"x", []byte("2")}}},
		"empty module":      {Agent: []byte("a"), Modules: []Module{{"x", nil}}},
		"path for a module": {Agent: []byte("a"), Modules: []Module{{"../init", []byte("1")}}},
		"too many modules":  {Agent: []byte("a"), Modules: make([]Module, maxModules+1)},
	} {
		if err := Write(io.Discard, spec); err == nil {
			t.Errorf("%s: written", name)
		}
	}
}

func TestReadRefusesWhatIsCutShort(t *testing.T) {
	whole := archive(t, testSpec)
	for n := 0; n < len(whole); n += 64 {
		// Behind the last module's data only empty directories are lost.
		if bytes.Contains(whole[:n], []byte("first")) {
			break
		}
		if _, err := Read(bytes.NewReader(whole[:n])); err == nil {
			t.Errorf("read an archive of %d bytes cut to %d", len(whole), n)
		}
	}
}
