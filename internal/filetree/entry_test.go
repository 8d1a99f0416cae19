package filetree

import (
	"bufio"
	"bytes"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// listed is a listing as it is sent.
func listed(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	for _, e := range entries {
		if err := WriteEntry(w, e); err != nil {
			t.Fatal(err)
		}
	}
	if err := EndEntries(w); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

var someEntries = []Entry{
	{Name: ".", Mode: fs.ModeDir | 0o755, Modified: time.Unix(-1, 5)},
	{Name: "a\xff\nb", Mode: 0o640 | fs.ModeSetuid, Size: 1 << 40, Modified: time.Unix(1e9, 999_999_999), Digest: bytes.Repeat([]byte{7}, digestLength)},
	{Name: "sub/link", Mode: fs.ModeSymlink | 0o777, Target: "../../x", Modified: time.Unix(1, 0)},
}

func TestEntries(t *testing.T) {
	var got []Entry
	err := ReadEntries(bytes.NewReader(listed(t, someEntries...)), func(e Entry) error {
		got = append(got, e)
		return nil
	})
	if diff := cmp.Diff(someEntries, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	wanted := map[string]Part{"a": {}, "b/c": {Offset: 5, Digest: bytes.Repeat([]byte{1}, digestLength)}}
	var out bytes.Buffer
	must(t, WriteWanted(&out, wanted))
	read, err := ReadWanted(&out)
	if diff := cmp.Diff(wanted, read); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// No listing of a guest's makes names that lead elsewhere, or is taken for whole
// when it is not.
func TestHostileEntries(t *testing.T) {
	whole := listed(t, someEntries...)
	for n := range len(whole) {
		if err := ReadEntries(bytes.NewReader(whole[:n]), func(Entry) error { return nil }); err == nil {
			t.Errorf("the first %d bytes of %d are a listing", n, len(whole))
		}
	}
	for what, e := range map[string]Entry{
		"up": {Name: "../x"}, "absolute": {Name: "/x"}, "not clean": {Name: "a//b"}, "empty": {}, "NUL": {Name: "a\x00"},
		"deep": {Name: strings.Repeat("a/", maxDepth+1) + "a"}, "mode": {Name: "a", Mode: 1 << 15}, "size": {Name: "a", Size: -1},
		"digest": {Name: "a", Digest: []byte("short")},
	} {
		if err := ReadEntries(bytes.NewReader(listed(t, e)), func(Entry) error { return nil }); err == nil {
			t.Errorf("%s: %+v is taken", what, e)
		}
	}
	var entries Entries
	if err := ReadEntries(bytes.NewReader(listed(t, Entry{Name: "a"}, Entry{Name: "a"})), entries.Add); err == nil {
		t.Error("a name is taken twice")
	}
	entries = Entries{kept: maxRemembered}
	if err := entries.Add(Entry{Name: "a"}); err == nil {
		t.Error("any number of entries is kept")
	}
}

func FuzzEntries(f *testing.F) {
	f.Add(listed(f, someEntries...))
	f.Add([]byte{0})
	f.Add([]byte{3, 1, 2, 3, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var entries []Entry
		err := ReadEntries(bytes.NewReader(data), func(e Entry) error {
			if clean, err := localName(e.Name); err != nil || clean != e.Name {
				t.Errorf("the name %q comes through", e.Name)
			}
			entries = append(entries, e)
			return nil
		})
		if err != nil {
			return
		}
		// What was read says the same when it is written.
		var again []Entry
		if err := ReadEntries(bytes.NewReader(listed(t, entries...)), func(e Entry) error {
			again = append(again, e)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(entries, again); diff != "" {
			t.Error(diff)
		}
	})
}
