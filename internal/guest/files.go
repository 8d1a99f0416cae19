package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest/proto/filesystem"
)

// File is what the guest says of a file.
type File struct {
	Name string
	Size int64
	// Mode has the type and the permissions.
	Mode     fs.FileMode
	Modified time.Time
	// Target is where a symbolic link leads to.
	Target string
}

// fileOf makes a File of what the guest says. Its name is one, and no path.
func fileOf(entry *filesystem.EntryInfo) (File, error) {
	f := File{
		Name: entry.GetName(), Size: max(entry.GetSize(), 0), Mode: fs.FileMode(entry.GetMode()) & fs.ModePerm,
		Modified: entry.GetModifiedTime().AsTime(), Target: entry.GetSymlinkTarget(),
	}
	if f.Name == "" || f.Name == "." || f.Name == ".." || strings.ContainsAny(f.Name, "/\x00") && f.Name != "/" {
		return File{}, api.Errorf(api.ErrGuest, "the guest says that a file is called %q", printable(f.Name))
	}
	switch {
	case strings.HasPrefix(entry.GetPermissions(), "L"):
		f.Mode = fs.ModeSymlink | fs.ModePerm
	case entry.GetType() == filesystem.FileType_FILE_TYPE_DIRECTORY:
		f.Mode |= fs.ModeDir
	case entry.GetType() != filesystem.FileType_FILE_TYPE_FILE:
		f.Mode |= fs.ModeIrregular
	}
	return f, nil
}

// maxLinks bounds how many symbolic links Stat follows.
const maxLinks = 8

// Stat tells what there is at path in the guest, symbolic links followed.
func (c *Client) Stat(ctx context.Context, name string) (File, error) {
	at := name
	for range maxLinks {
		response, err := c.files.Stat(ctx, connect.NewRequest(&filesystem.StatRequest{Path: at}))
		if err != nil {
			return File{}, filesError("look at", name, err)
		}
		f, err := fileOf(response.Msg.GetEntry())
		if err != nil || f.Mode&fs.ModeSymlink == 0 {
			f.Name = path.Base(name)
			return f, err
		}
		if !path.IsAbs(f.Target) {
			break // it leads nowhere
		}
		at = f.Target
	}
	return File{}, notThere("look at", name)
}

// ReadDir lists a directory of the guest, in the order of the names. Links in
// it are not followed.
func (c *Client) ReadDir(ctx context.Context, name string) ([]File, error) {
	response, err := c.files.ListDir(ctx, connect.NewRequest(&filesystem.ListDirRequest{Path: name}))
	if err != nil {
		return nil, filesError("list", name, err)
	}
	var files []File
	for _, entry := range response.Msg.GetEntries() {
		f, err := fileOf(entry)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// OpenFile reads a regular file of the guest. The caller closes it.
func (c *Client) OpenFile(ctx context.Context, name string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, baseURL+"/files?"+url.Values{"path": {name}}.Encode(), nil)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, fmt.Errorf("read %s in the guest: %w", printable(name), linkError(err))
	}
	if response.StatusCode == http.StatusOK {
		return body{response.Body}, nil
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotFound {
		return nil, notThere("read", name)
	}
	text, _ := io.ReadAll(io.LimitReader(response.Body, maxReason)) // what there is of a reason
	return nil, api.Errorf(api.ErrFile, "read %s in the guest: %s: %s", printable(name), response.Status, printable(string(text)))
}

// body names what breaks a stream.
type body struct{ io.ReadCloser }

func (b body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = linkError(err)
	}
	return n, err
}

// WriteFile makes or replaces a file of the guest, whose directory is there. It
// has all of data or is as it was before.
func (c *Client) WriteFile(ctx context.Context, name string, data []byte, mode fs.FileMode) error {
	directory, base := path.Split(name)
	var stream bytes.Buffer
	w := tar.NewWriter(&stream)
	err := w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: base, Size: int64(len(data)), Mode: int64(mode.Perm()), ModTime: time.Now(), Format: tar.FormatPAX,
	})
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		_, err = c.WriteTree(ctx, directory, &stream, WriteTreeOptions{Name: base})
	}
	return err
}

// MakeDir makes a directory of the guest with its parents. One that is there is
// no error.
func (c *Client) MakeDir(ctx context.Context, name string) error {
	_, err := c.files.MakeDir(ctx, connect.NewRequest(&filesystem.MakeDirRequest{Path: name}))
	if connect.CodeOf(err) == connect.CodeAlreadyExists && connect.IsWireError(err) {
		return nil
	}
	return filesError("make directory", name, err)
}

// Rename gives a file of the guest another path, whose parents are made.
func (c *Client) Rename(ctx context.Context, from, to string) error {
	_, err := c.files.Move(ctx, connect.NewRequest(&filesystem.MoveRequest{Source: from, Destination: to}))
	return filesError("rename", from, err)
}

// RemoveAll removes a file or tree of the guest. One that is not there is no
// error.
func (c *Client) RemoveAll(ctx context.Context, name string) error {
	_, err := c.files.Remove(ctx, connect.NewRequest(&filesystem.RemoveRequest{Path: name}))
	return filesError("remove", name, err)
}

func notThere(doing, name string) error {
	return api.Errorf(api.ErrFileNotFound, "%s %s in the guest: %w", doing, printable(name), fs.ErrNotExist)
}

// filesError gives what the guest says of a file a code, and what package fs
// calls it.
func filesError(doing, name string, err error) error {
	var remote *connect.Error
	if err == nil || !errors.As(err, &remote) || !connect.IsWireError(err) {
		return callError(doing+" "+printable(name), err)
	}
	switch remote.Code() {
	case connect.CodeNotFound:
		return notThere(doing, name)
	case connect.CodePermissionDenied:
		return api.Errorf(api.ErrFile, "%s %s in the guest: %w", doing, printable(name), fs.ErrPermission)
	case connect.CodeInvalidArgument, connect.CodeAlreadyExists, connect.CodeFailedPrecondition:
		return api.Errorf(api.ErrFile, "%s %s in the guest: %s", doing, printable(name), printable(remote.Message()))
	case connect.CodeResourceExhausted:
		return api.Errorf(api.ErrDiskFull, "%s %s in the guest: %s", doing, printable(name), printable(remote.Message()))
	}
	return callError(doing+" "+printable(name), err)
}
