package filetree

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// Entry is what a listing has of a file, or what is asked for of one.
type Entry struct {
	// Name is below the tree, as in a stream of it.
	Name string
	Mode fs.FileMode
	// Size is that of a regular file, in bytes.
	Size     int64
	Modified time.Time
	// Target is where a symbolic link leads.
	Target string
	// Digest is the SHA-256 of a file's content, where that was asked for.
	Digest []byte
}

// Listings are records, each behind its length, which end with one of no
// length: a listing that was cut is none. Names may be any bytes but NUL, which
// is why it is no JSON.
const (
	maxRecord    = 2*maxName + 256
	digestLength = 32
	// modeBits are those that an entry may have.
	modeBits = fs.ModeType | fs.ModePerm | fs.ModeSticky | setID
)

// WriteEntry writes the record of e.
func WriteEntry(w *bufio.Writer, e Entry) error {
	record := binary.AppendUvarint(nil, uint64(e.Mode))
	record = binary.AppendUvarint(record, uint64(e.Size))
	record = binary.AppendVarint(record, e.Modified.Unix())
	record = binary.AppendUvarint(record, uint64(e.Modified.Nanosecond()))
	for _, text := range []string{e.Name, e.Target, string(e.Digest)} {
		record = binary.AppendUvarint(record, uint64(len(text)))
		record = append(record, text...)
	}
	if len(record) > maxRecord {
		return fmt.Errorf("the name %.100q is too long for a listing", e.Name)
	}
	if _, err := w.Write(binary.AppendUvarint(nil, uint64(len(record)))); err != nil {
		return err
	}
	_, err := w.Write(record)
	return err
}

// EndEntries ends a listing.
func EndEntries(w *bufio.Writer) error {
	if err := w.WriteByte(0); err != nil {
		return err
	}
	return w.Flush()
}

// ReadEntries reads a listing to its end, and calls each with what it has. The
// names of entries stay below the tree. Whoever keeps them bounds how much, as
// Entries does.
func ReadEntries(r io.Reader, each func(Entry) error) error {
	buffered := bufio.NewReader(r)
	record := make([]byte, maxRecord)
	for n := 0; ; n++ {
		length, err := binary.ReadUvarint(buffered)
		switch {
		case err != nil:
			return listingError(err)
		case length == 0:
			return nil
		case length > maxRecord:
			return fmt.Errorf("a listing has a record of %d bytes", length)
		case n >= maxEntries:
			return fmt.Errorf("a listing has more than %d files", maxEntries)
		}
		if _, err := io.ReadFull(buffered, record[:length]); err != nil {
			return listingError(err)
		}
		e, err := parseEntry(record[:length])
		if err != nil {
			return err
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

// listingError is for what a reader says before the end.
func listingError(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read a listing: %w", err)
}

var errRecord = errors.New("a listing has a malformed record")

func parseEntry(record []byte) (Entry, error) {
	p := parser{rest: record}
	mode, size := p.number(), p.number()
	seconds, nanoseconds := p.signed(), p.number()
	name, target, digest := p.text(), p.text(), p.text()
	e := Entry{Name: name, Mode: fs.FileMode(mode), Size: int64(size), Modified: time.Unix(seconds, int64(nanoseconds)), Target: target}
	if len(digest) > 0 {
		e.Digest = []byte(digest)
	}
	switch {
	case p.bad || len(p.rest) > 0:
		return Entry{}, errRecord
	case mode > uint64(^uint32(0)) || e.Mode&^modeBits != 0, e.Size < 0, nanoseconds >= 1e9, len(digest) != 0 && len(digest) != digestLength:
		return Entry{}, errRecord
	}
	clean, err := localName(name)
	if err == nil && clean != name {
		err = fmt.Errorf("a listing has the name %.100q, which is not in its shortest form", name)
	}
	return e, err
}

// parser takes fields off the front of a record.
type parser struct {
	rest []byte
	bad  bool
}

func (p *parser) number() uint64 {
	value, n := binary.Uvarint(p.rest)
	p.skip(n)
	return value
}

func (p *parser) signed() int64 {
	value, n := binary.Varint(p.rest)
	p.skip(n)
	return value
}

func (p *parser) text() string {
	length := p.number()
	if p.bad || length > uint64(len(p.rest)) {
		p.bad = true
		return ""
	}
	text := string(p.rest[:length])
	p.rest = p.rest[length:]
	return text
}

func (p *parser) skip(n int) {
	if n <= 0 {
		p.bad, n = true, 0
	}
	p.rest = p.rest[n:]
}

// Entries are those of a tree.
type Entries struct {
	ByName map[string]Entry
	kept   int // bytes
}

// Add keeps e. There is an end to what is kept: a guest may list any number.
func (l *Entries) Add(e Entry) error {
	if l.kept += len(e.Name) + len(e.Target) + len(e.Digest) + 2*rememberedOverhead; l.kept > maxRemembered {
		return fmt.Errorf("the listing of a tree takes more than %d MiB to remember", maxRemembered>>20)
	}
	if l.ByName == nil {
		l.ByName = map[string]Entry{}
	}
	if _, twice := l.ByName[e.Name]; twice {
		return fmt.Errorf("a listing has %.200q twice", e.Name)
	}
	l.ByName[e.Name] = e
	return nil
}

// WriteWanted writes a listing of what is wanted.
func WriteWanted(w io.Writer, wanted map[string]Part) error {
	buffered := bufio.NewWriter(w)
	for name, part := range wanted {
		if err := WriteEntry(buffered, Entry{Name: name, Size: part.Offset, Digest: part.Digest}); err != nil {
			return err
		}
	}
	return EndEntries(buffered)
}

// ReadWanted reads what WriteWanted wrote.
func ReadWanted(r io.Reader) (map[string]Part, error) {
	var entries Entries // bounds them
	err := ReadEntries(r, entries.Add)
	wanted := make(map[string]Part, len(entries.ByName))
	for name, e := range entries.ByName {
		wanted[name] = Part{Offset: e.Size, Digest: e.Digest}
	}
	return wanted, err
}
