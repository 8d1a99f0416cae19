package guest

import (
	"testing"

	"github.com/vmsan/vmsan/internal/guest/proto/filesystem"
	"google.golang.org/protobuf/proto"
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
		if file.Name == "" || file.Name == ".." || file.Name != "/" && len(file.Name) != len(baseOf(file.Name)) || file.Size < 0 {
			t.Errorf("%+v", file)
		}
	})
}

func baseOf(name string) string {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			return name[i+1:]
		}
	}
	return name
}
