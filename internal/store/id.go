package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/vmsan/vmsan/api"
)

// Slots is how many sandboxes a state directory can hold: as many /30 as
// there are in the default address pool.
const Slots = 32768

const (
	idPrefix   = "vm"
	idLength   = 10
	idAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
)

// ids are part of the names of network devices (15 bytes at most), control
// groups and files, so they are short and of one kind of character.
var validID = regexp.MustCompile(`^vm[a-z0-9]{10}$`)

// ValidID tells whether id has the form of a sandbox id: vm and 10 lower-case
// letters or digits.
func ValidID(id string) bool { return validID.MatchString(id) }

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)

// ValidName tells whether name can be a sandbox's: 1 to 63 letters, digits,
// dots, dashes and underscores, beginning with a letter or digit.
func ValidName(name string) bool { return validName.MatchString(name) }

func newID() string {
	raw := make([]byte, 2*idLength)
	rand.Read(raw)
	id := []byte(idPrefix)
	for i := range idLength {
		// 65536 mod 36 favours some letters by 1 in 1820: of no matter here.
		id = append(id, idAlphabet[(int(raw[2*i])<<8|int(raw[2*i+1]))%len(idAlphabet)])
	}
	return string(id)
}

// IDs lists the ids of all sandboxes, in no order.
func (l Layout) IDs() ([]string, error) {
	dir, err := os.Open(l.Sandboxes())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	return slices.DeleteFunc(names, func(name string) bool { return !ValidID(name) }), nil
}

func sortByCreation(records []*Record) {
	slices.SortFunc(records, func(a, b *Record) int {
		if order := a.CreatedAt.Compare(b.CreatedAt); order != 0 {
			return order
		}
		return strings.Compare(a.ID, b.ID)
	})
}

// Find returns the id of the sandbox that the user means by ref: an id, a
// name, or the beginning of exactly one id.
func (l Layout) Find(ref string) (string, error) {
	if ValidID(ref) {
		if _, err := os.Stat(l.Sandbox(ref)); err == nil {
			return ref, nil
		}
	}
	if !ValidName(ref) {
		return "", api.Errorf(api.ErrVMNotFound, "VM not found: %.80q is neither an id nor a name", ref).WithVM(ref).
			WithHint("vmsan list")
	}
	if id := l.noted(ref); id != "" {
		return id, nil
	}
	records, broken, err := l.List()
	if err != nil {
		return "", err
	}
	var begins []string
	for _, r := range records {
		if r.Name == ref {
			return r.ID, nil
		}
		if strings.HasPrefix(r.ID, ref) {
			begins = append(begins, r.ID)
		}
	}
	for id := range broken {
		if strings.HasPrefix(id, ref) {
			begins = append(begins, id)
		}
	}
	switch len(begins) {
	case 0:
		return "", notFound(ref)
	case 1:
		return begins[0], nil
	}
	slices.Sort(begins)
	return "", api.Errorf(api.ErrVMAmbiguous, "%s is the beginning of %d ids: %s", ref, len(begins),
		strings.Join(begins[:min(len(begins), 5)], ", ")).WithVM(ref).WithHint("vmsan list")
}
