package guest

import (
	"io/fs"
	"path"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/vmsan/vmsan/internal/guest/proto/filesystem"
)

// What a guest calls its files is a name, whatever it says.
func FuzzFileOf(f *testing.F) {
	for _, entry := range []*filesystem.EntryInfo{
		{Name: "a", Type: filesystem.FileType_FILE_TYPE_FILE, Size: 3, Mode: 0o644, Permissions: "-rw-r--r--"},
		{Name: "..", Size: -1}, {Name: "a/b"}, {Name: ""}, {Name: "/"}, {Name: "l", Permissions: "Lrwxrwxrwx"}, {Name: "x", Mode: 1 << 31},
	} {
		raw, err := proto.Marshal(entry)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var entry filesystem.EntryInfo
		if proto.Unmarshal(raw, &entry) != nil {
			return
		}
		file, err := fileOf(&entry)
		if err != nil {
			return
		}
		if file.Name == "" || file.Name == ".." || file.Name != path.Base(file.Name) || file.Size < 0 || file.Mode&fs.ModeSetuid != 0 {
			t.Errorf("%+v", file)
		}
	})
}
