package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/filetree"
	"github.com/vmsan/vmsan/internal/guest/proto/filesystem"
)

// FileKind is what sort of file there is.
type FileKind int

// Kinds of files.
const (
	NoFile FileKind = iota
	PlainFile
	Directory
	SpecialFile // a device, a pipe or a socket
)

// Found is what a path leads to.
type Found struct {
	Kind FileKind
	// Path is absolute, and no symbolic link. Empty if there is no file.
	Path string
}

// Find tells what path leads to in the guest, symbolic links followed.
func (c *Client) Find(ctx context.Context, path string) (Found, error) {
	response, err := c.files.Stat(ctx, connect.NewRequest(&filesystem.StatRequest{Path: path}))
	switch {
	case connect.CodeOf(err) == connect.CodeNotFound && connect.IsWireError(err):
		return Found{}, nil
	case err != nil:
		return Found{}, callError("look at "+printable(path), err)
	}
	entry := response.Msg.GetEntry()
	found := Found{Kind: PlainFile, Path: entry.GetPath()}
	switch entry.GetType() {
	case filesystem.FileType_FILE_TYPE_DIRECTORY:
		found.Kind = Directory
	case filesystem.FileType_FILE_TYPE_UNSPECIFIED:
		found.Kind = SpecialFile
	}
	if target := entry.GetSymlinkTarget(); target != "" {
		found.Path = target
	}
	return found, nil
}

// TreeReader is a tar stream of files in the guest.
type TreeReader struct {
	path     string
	response *http.Response
}

// ReadTree reads the file or tree at path in the guest as a tar stream, its
// top called name. wanted says what of it; nil: all.
func (c *Client) ReadTree(ctx context.Context, path, name string, wanted map[string]filetree.Part) (*TreeReader, error) {
	method, body := http.MethodGet, io.Reader(nil)
	if wanted != nil {
		list := new(bytes.Buffer)
		if err := filetree.WriteWanted(list, wanted); err != nil {
			return nil, err
		}
		method, body = http.MethodPost, list
	}
	response, err := c.tree(ctx, method, "tree", url.Values{"path": {path}, "name": {name}}, body)
	if err != nil {
		return nil, fmt.Errorf("read %s in the guest: %w", printable(path), err)
	}
	return &TreeReader{path: path, response: response}, nil
}

// Read ends with the guest's error, if there was one.
func (t *TreeReader) Read(b []byte) (int, error) {
	n, err := t.response.Body.Read(b)
	if err == nil {
		return n, nil
	}
	if err != io.EOF {
		return n, linkError(err)
	}
	if reason := t.response.Trailer.Get("Vmsan-Error"); reason != "" {
		return n, api.Errorf(api.ErrGuest, "read %s in the guest: %s", printable(t.path), printable(reason))
	}
	return n, io.EOF
}

// Close may come before the end.
func (t *TreeReader) Close() error { return t.response.Body.Close() }

// Skipped is how many devices, sockets and pipes were left out. It is known
// after the end.
func (t *TreeReader) Skipped() int64 {
	var totals filetree.Totals
	// It is for the user alone, and the guest may say what it wants.
	_ = json.Unmarshal([]byte(t.response.Trailer.Get("Vmsan-Totals")), &totals)
	return max(totals.Skipped, 0)
}

// ListTree lists the file or tree at path in the guest, its top called o.Name;
// of o also Destination and Digests count. How much is kept is bounded.
func (c *Client) ListTree(ctx context.Context, path string, o filetree.ListOptions, keep func(filetree.Entry) error) error {
	query := url.Values{"path": {path}, "name": {o.Name}}
	if o.Destination {
		query.Set("destination", "yes")
	}
	if o.Digests {
		query.Set("digests", "yes")
	}
	response, err := c.tree(ctx, http.MethodGet, "list", query, nil)
	if err != nil {
		return fmt.Errorf("list %s in the guest: %w", printable(path), err)
	}
	r := &TreeReader{path: path, response: response}
	defer r.Close()
	err = filetree.ReadEntries(r, keep)
	var coded *api.Error
	if err != nil && !errors.As(err, &coded) {
		err = api.Errorf(api.ErrGuest, "list %s in the guest: %w", printable(path), err)
	}
	return err
}

// WriteTreeOptions say what is made in the guest, and whose it is.
type WriteTreeOptions struct {
	// Name is that of the only file or directory that the stream may make;
	// "" and "." let the stream say what there is.
	Name string
	// User owns them; empty: the sandbox's own user.
	User string
	// KeepOwners has them belong to whom the stream says.
	KeepOwners bool
	// Resume keeps what there is of a large file if the stream breaks off.
	Resume bool
	// Removals lets the stream remove files.
	Removals bool
	// Make makes the directory if it is not there.
	Make bool
}

// WriteTree unpacks a tar stream in a directory of the guest.
func (c *Client) WriteTree(ctx context.Context, directory string, r io.Reader, o WriteTreeOptions) (filetree.Totals, error) {
	query := url.Values{"path": {directory}, "name": {o.Name}}
	if o.User != "" {
		query.Set("username", o.User)
	}
	if o.KeepOwners {
		query.Set("owners", "keep")
	}
	if o.Resume {
		query.Set("resume", "yes")
	}
	if o.Removals {
		query.Set("removals", "yes")
	}
	if o.Make {
		query.Set("make", "yes")
	}
	source := &remembering{r: r}
	response, err := c.tree(ctx, http.MethodPut, "tree", query, source)
	if err != nil {
		// That the source failed explains all that comes of it.
		if source.err != nil {
			err = source.err
		}
		return filetree.Totals{}, fmt.Errorf("write to %s in the guest: %w", printable(directory), err)
	}
	defer response.Body.Close()
	var totals filetree.Totals
	if err := json.NewDecoder(io.LimitReader(response.Body, maxMessage)).Decode(&totals); err != nil {
		return totals, api.Errorf(api.ErrGuest, "read what the guest says of %s: %w", printable(directory), err)
	}
	return totals, nil
}

// remembering keeps the error that a reader ended with.
type remembering struct {
	r   io.Reader
	err error
}

func (r *remembering) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// maxReason bounds what a guest says of an error, in bytes.
const maxReason = 8 << 10

func (c *Client) tree(ctx context.Context, method, what string, query url.Values, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, baseURL+"/vmsan/"+what+"?"+query.Encode(), body)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, linkError(err)
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	var failure struct{ Message string }
	_ = json.NewDecoder(io.LimitReader(response.Body, maxReason)).Decode(&failure)
	if failure.Message == "" {
		failure.Message = response.Status
	}
	code := api.ErrGuest
	if response.StatusCode == http.StatusNotFound {
		code = api.ErrFileNotFound
	}
	return nil, api.Errorf(code, "%s", printable(failure.Message))
}
