package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/internal/guest/proto/filesystem"
)

// filesystemService is filesystem.Filesystem.
type filesystemService struct {
	agent *Agent
}

// locate resolves a path for the caller of a request.
func (s *filesystemService) locate(path string, header http.Header) (string, account, error) {
	owner, err := s.agent.rpcCaller("", header)
	if err != nil {
		return "", account{}, err
	}
	resolved, err := resolve(path, owner.home, s.agent.current().workdir)
	if err != nil {
		return "", account{}, connect.NewError(connect.CodeInvalidArgument, err)
	}
	return resolved, owner, nil
}

func (s *filesystemService) entry(path string) (*filesystem.EntryInfo, error) {
	entry, err := describe(path, s.agent.accounts.names())
	return entry, fileError(path, err)
}

func (s *filesystemService) Stat(_ context.Context, request *connect.Request[filesystem.StatRequest]) (*connect.Response[filesystem.StatResponse], error) {
	path, _, err := s.locate(request.Msg.GetPath(), request.Header())
	if err != nil {
		return nil, err
	}
	entry, err := s.entry(path)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystem.StatResponse{Entry: entry}), nil
}

func (s *filesystemService) MakeDir(_ context.Context, request *connect.Request[filesystem.MakeDirRequest]) (*connect.Response[filesystem.MakeDirResponse], error) {
	path, owner, err := s.locate(request.Msg.GetPath(), request.Header())
	if err != nil {
		return nil, err
	}
	if err := makeDirectory(path, owner); err != nil {
		return nil, err
	}
	entry, err := s.entry(path)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystem.MakeDirResponse{Entry: entry}), nil
}

func makeDirectory(path string, owner account) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("directory already exists: %s", path))
	case err == nil:
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("path '%s' exists and is not a directory", path))
	}
	return fileError(path, makeDirectories(path, owner))
}

func (s *filesystemService) Move(_ context.Context, request *connect.Request[filesystem.MoveRequest]) (*connect.Response[filesystem.MoveResponse], error) {
	source, owner, err := s.locate(request.Msg.GetSource(), request.Header())
	if err != nil {
		return nil, err
	}
	destination, _, err := s.locate(request.Msg.GetDestination(), request.Header())
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(source); err != nil {
		return nil, fileError(source, err)
	}
	if err := makeParents(destination, owner); err != nil {
		return nil, fileError(destination, err)
	}
	if err := os.Rename(source, destination); err != nil {
		return nil, fileError(source, err)
	}
	entry, err := s.entry(destination)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystem.MoveResponse{Entry: entry}), nil
}

func (s *filesystemService) Remove(_ context.Context, request *connect.Request[filesystem.RemoveRequest]) (*connect.Response[filesystem.RemoveResponse], error) {
	path, _, err := s.locate(request.Msg.GetPath(), request.Header())
	if err != nil {
		return nil, err
	}
	if path == "/" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("the root directory cannot be removed"))
	}
	if err := os.RemoveAll(path); err != nil {
		return nil, fileError(path, err)
	}
	return connect.NewResponse(&filesystem.RemoveResponse{}), nil
}

func (s *filesystemService) ListDir(ctx context.Context, request *connect.Request[filesystem.ListDirRequest]) (*connect.Response[filesystem.ListDirResponse], error) {
	path, _, err := s.locate(request.Msg.GetPath(), request.Header())
	if err != nil {
		return nil, err
	}
	depth := max(request.Msg.GetDepth(), 1)
	if depth > maxDepth {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("depth %d is more than %d", depth, maxDepth))
	}
	if err := requireDirectory(path); err != nil {
		return nil, err
	}
	l := &listing{names: s.agent.accounts.names()}
	if err := l.list(ctx, path, int(depth)); err != nil {
		return nil, fileError(path, err)
	}
	return connect.NewResponse(&filesystem.ListDirResponse{Entries: l.entries}), nil
}

func requireDirectory(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fileError(path, err)
	}
	if !info.IsDir() {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("path is not a directory: %s", path))
	}
	return nil
}

// listing collects entries depth first, in lexical order.
type listing struct {
	names   *ownerNames
	entries []*filesystem.EntryInfo
}

// list goes into directories, not into symlinks to directories: those could lead round in circles.
func (l *listing) list(ctx context.Context, directory string, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	found, err := os.ReadDir(directory)
	if err != nil {
		return err
	}
	for _, item := range found {
		path := filepath.Join(directory, item.Name())
		if err := l.add(path); err != nil {
			return err
		}
		if !item.IsDir() || depth <= 1 {
			continue
		}
		// A directory that goes away, or may not be read, is listed without what is in it.
		err := l.list(ctx, path, depth-1)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
}

func (l *listing) add(path string) error {
	if len(l.entries) >= maxEntries {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("more than %d entries", maxEntries))
	}
	entry, err := describe(path, l.names)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil // removed since the directory was read
	}
	if err != nil {
		return err
	}
	l.entries = append(l.entries, entry)
	return nil
}
