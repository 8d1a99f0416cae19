package agent

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// fileInfo is how an upload is answered.
type fileInfo struct {
	Name     string            `json:"name"`
	Path     string            `json:"path"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// fileUser is the user of a request for /files: in the query, or by HTTP Basic, or the default one.
func (a *Agent) fileUser(named string, header http.Header) (account, error) {
	found, err := a.caller(named, header)
	var unknown *unknownUserError
	if errors.As(err, &unknown) {
		return account{}, httpErrorf(http.StatusUnauthorized, "%v", err)
	}
	return found, err
}

func (a *Agent) filePath(path string, owner account) (string, error) {
	resolved, err := resolve(path, owner.home, a.current().workdir)
	if err != nil {
		return "", httpErrorf(http.StatusBadRequest, "%v", err)
	}
	return resolved, nil
}

// fileHTTPError words an error about a path for a plain HTTP call.
func fileHTTPError(path string, err error) error {
	var already *httpError
	switch {
	case errors.As(err, &already):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return httpErrorf(http.StatusNotFound, "path '%s' does not exist", path)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return httpErrorf(http.StatusInsufficientStorage, "no space left for '%s'", path)
	case errors.Is(err, syscall.EISDIR):
		return httpErrorf(http.StatusBadRequest, "path '%s' is a directory", path)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENXIO):
		return httpErrorf(http.StatusBadRequest, "%v", err)
	}
	return err
}

// serveDownload sends one file.
func (a *Agent) serveDownload(w http.ResponseWriter, r *http.Request) {
	if err := a.download(w, r); err != nil {
		writeHTTPError(w, err)
	}
}

func (a *Agent) download(w http.ResponseWriter, r *http.Request) error {
	if err := a.authorizeFile(r, "read"); err != nil {
		return err
	}
	query := r.URL.Query()
	owner, err := a.fileUser(query.Get("username"), r.Header)
	if err != nil {
		return err
	}
	path, err := a.filePath(query.Get("path"), owner)
	if err != nil {
		return err
	}
	file, info, err := openRegular(path)
	if err != nil {
		return fileHTTPError(path, err)
	}
	defer file.Close()
	encoding, err := chooseEncoding(r.Header)
	if err != nil {
		return err
	}
	header := w.Header()
	header.Set("Content-Disposition", contentDisposition(filepath.Base(path)))
	header.Set("Cache-Control", "no-cache")
	header.Add("Vary", "Accept-Encoding")
	if encoding == "gzip" {
		return sendCompressed(w, r, file, info)
	}
	if info.Size() == 0 {
		return sendUnsized(w, r, file)
	}
	http.ServeContent(w, r, path, info.ModTime(), file)
	return nil
}

// openRegular opens a file to read. It never waits, as opening a FIFO would.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err == nil && info.IsDir() {
		err = httpErrorf(http.StatusBadRequest, "path '%s' is a directory", path)
	} else if err == nil && !info.Mode().IsRegular() {
		err = httpErrorf(http.StatusBadRequest, "path '%s' is not a regular file", path)
	}
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, info, nil
}

// contentDisposition names a file for browsers, in UTF-8 where it must.
func contentDisposition(name string) string {
	if value := mime.FormatMediaType("inline", map[string]string{"filename": name}); value != "" {
		return value
	}
	return "inline; filename*=utf-8''" + url.PathEscape(name)
}

// chooseEncoding returns "gzip" or "identity", or 406 if the client accepts neither. Parts of a file, and
// answers that depend on its state, are those of the file as it is.
func chooseEncoding(header http.Header) (string, error) {
	accepted := parseAccept(header.Get("Accept-Encoding"))
	weight := func(name string, unsaid float64) float64 {
		if q, ok := accepted[name]; ok {
			return q
		}
		if q, ok := accepted["*"]; ok {
			return q
		}
		return unsaid
	}
	gzipped, plain := weight("gzip", 0), weight("identity", 1)
	conditional := false
	for _, name := range []string{"Range", "If-Modified-Since", "If-None-Match", "If-Match", "If-Unmodified-Since", "If-Range"} {
		conditional = conditional || header.Get(name) != ""
	}
	switch {
	case gzipped > 0 && !(conditional && plain > 0):
		return "gzip", nil
	case plain > 0:
		return "identity", nil
	}
	return "", httpErrorf(http.StatusNotAcceptable, "no acceptable encoding: gzip and identity are there")
}

// parseAccept reads "gzip;q=0.5, identity" into weights. What it cannot read it takes for accepted.
func parseAccept(header string) map[string]float64 {
	weights := map[string]float64{}
	for part := range strings.SplitSeq(header, ",") {
		name, parameters, _ := strings.Cut(part, ";")
		name = strings.ToLower(strings.TrimSpace(name))
		if name == "" {
			continue
		}
		weight := 1.0
		if value, ok := strings.CutPrefix(strings.TrimSpace(parameters), "q="); ok {
			if q, err := strconv.ParseFloat(value, 64); err == nil && q >= 0 && q <= 1 {
				weight = q
			}
		}
		weights[name] = weight
	}
	return weights
}

// gzips are writers to use again: each holds most of a megabyte.
var gzips = sync.Pool{New: func() any {
	w, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // the level is valid
	return w
}}

func sendCompressed(w http.ResponseWriter, r *http.Request, file *os.File, info fs.FileInfo) error {
	header := w.Header()
	if header.Get("Content-Type") == "" {
		kind, err := contentType(file)
		if err != nil {
			return err
		}
		header.Set("Content-Type", kind)
	}
	header.Set("Content-Encoding", "gzip")
	header.Set("Last-Modified", info.ModTime().UTC().Format(http.TimeFormat))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	compressed := gzips.Get().(*gzip.Writer)
	defer gzips.Put(compressed)
	compressed.Reset(w)
	if _, err := io.Copy(compressed, file); err != nil {
		// The status is sent already: a cut stream is what is left to tell the client with.
		panic(http.ErrAbortHandler)
	}
	compressed.Close()
	return nil
}

// sendUnsized sends what there is: files of /proc and /sys say they are empty and are not.
func sendUnsized(w http.ResponseWriter, r *http.Request, file *os.File) error {
	kind, err := contentType(file)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", kind)
	if r.Method == http.MethodHead {
		return nil
	}
	if _, err := io.Copy(w, file); err != nil {
		panic(http.ErrAbortHandler) // as in sendCompressed
	}
	return nil
}

// contentType guesses as http.ServeContent does.
func contentType(file *os.File) (string, error) {
	if kind := mime.TypeByExtension(filepath.Ext(file.Name())); kind != "" {
		return kind, nil
	}
	var start [512]byte
	n, err := file.ReadAt(start[:], 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	return http.DetectContentType(start[:n]), nil
}

// serveUpload writes files.
func (a *Agent) serveUpload(w http.ResponseWriter, r *http.Request) {
	written, err := a.upload(r)
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, written)
}

func (a *Agent) upload(r *http.Request) ([]fileInfo, error) {
	if err := a.authorizeFile(r, "write"); err != nil {
		return nil, err
	}
	owner, err := a.fileUser(r.URL.Query().Get("username"), r.Header)
	if err != nil {
		return nil, err
	}
	metadata, err := requestMetadata(r.Header)
	if err != nil {
		return nil, err
	}
	body, err := decodedBody(r)
	if err != nil {
		return nil, err
	}
	u := &upload{agent: a, owner: owner, metadata: metadata, path: r.URL.Query().Get("path"), seen: map[string]bool{}}
	kind, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case err != nil:
		return nil, httpErrorf(http.StatusBadRequest, "content type: %v", err)
	case kind == "multipart/form-data":
		return u.parts(multipart.NewReader(body, parameters["boundary"]))
	case kind == "application/octet-stream" && u.path == "":
		return nil, httpErrorf(http.StatusBadRequest, "an octet-stream needs the query parameter path")
	case kind == "application/octet-stream":
		return u.one(u.path, body)
	}
	return nil, httpErrorf(http.StatusBadRequest, "content type '%s' is neither multipart/form-data nor application/octet-stream", kind)
}

// decodedBody undoes the encoding of a request.
func decodedBody(r *http.Request) (io.Reader, error) {
	switch encoding := strings.ToLower(strings.TrimSpace(r.Header.Get("Content-Encoding"))); encoding {
	case "", "identity":
		return r.Body, nil
	case "gzip":
		reader, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, httpErrorf(http.StatusBadRequest, "read gzip: %v", err)
		}
		return reader, nil
	default:
		return nil, httpErrorf(http.StatusBadRequest, "content encoding '%s' is neither gzip nor identity", encoding)
	}
}

// requestMetadata reads the X-Metadata- headers. Keys are lowercase.
func requestMetadata(header http.Header) (map[string]string, error) {
	var metadata map[string]string
	size := 0
	for name, values := range header {
		key, ok := strings.CutPrefix(strings.ToLower(name), "x-metadata-")
		if !ok {
			continue
		}
		value := strings.Join(values, ", ")
		size += len(key) + len(value)
		switch {
		case key == "" || len(key) > maxMetadataKey:
			return nil, httpErrorf(http.StatusBadRequest, "metadata key '%s' has %d bytes, not 1 to %d", key, len(key), maxMetadataKey)
		case !printable(key) || !printable(value):
			return nil, httpErrorf(http.StatusBadRequest, "metadata '%s' is not printable ASCII", key)
		case size > maxMetadata:
			return nil, httpErrorf(http.StatusBadRequest, "metadata takes more than %d bytes", maxMetadata)
		}
		if metadata == nil {
			metadata = map[string]string{}
		}
		metadata[key] = value
	}
	return metadata, nil
}

// upload is one request that writes files.
type upload struct {
	agent    *Agent
	owner    account
	metadata map[string]string
	path     string // of the query; wins over the names of parts
	seen     map[string]bool
	written  []fileInfo
}

// parts writes each part called "file".
func (u *upload) parts(reader *multipart.Reader) ([]fileInfo, error) {
	for count := 0; ; count++ {
		part, err := reader.NextPart()
		if err == io.EOF {
			return u.finish()
		}
		if err != nil {
			return nil, httpErrorf(http.StatusBadRequest, "read parts: %v", err)
		}
		if count >= maxParts {
			return nil, httpErrorf(http.StatusBadRequest, "more than %d parts", maxParts)
		}
		if part.FormName() != "file" {
			continue
		}
		name := u.path
		if name == "" {
			name = partName(part)
		}
		if name == "" {
			return nil, httpErrorf(http.StatusBadRequest, "a part has no filename")
		}
		if _, err := u.one(name, part); err != nil {
			return nil, err
		}
	}
}

func (u *upload) finish() ([]fileInfo, error) {
	if len(u.written) == 0 {
		return nil, httpErrorf(http.StatusBadRequest, "no part is called 'file'")
	}
	return u.written, nil
}

// partName is the filename as sent: multipart's own FileName drops its directories.
func partName(part *multipart.Part) string {
	_, parameters, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	if err != nil {
		return part.FileName()
	}
	return parameters["filename"]
}

// one writes one file.
func (u *upload) one(name string, from io.Reader) ([]fileInfo, error) {
	path, err := u.agent.filePath(name, u.owner)
	if err != nil {
		return nil, err
	}
	if u.seen[path] {
		return nil, httpErrorf(http.StatusBadRequest, "path '%s' is uploaded twice in one request", path)
	}
	u.seen[path] = true
	if err := writeFile(path, from, u.owner, u.metadata); err != nil {
		return nil, fileHTTPError(path, err)
	}
	u.written = append(u.written, fileInfo{Name: filepath.Base(path), Path: path, Type: "file", Metadata: u.metadata})
	return u.written, nil
}

// writeFile makes or replaces the contents of a file, and gives it to its owner.
func writeFile(path string, from io.Reader, owner account, metadata map[string]string) error {
	if err := makeParents(path, owner); err != nil {
		return err
	}
	file, err := openForWriting(path)
	if err != nil {
		return err
	}
	err = fillUpload(file, from, owner, metadata)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return err
}

// openForWriting never waits, as opening a FIFO nobody reads would.
func openForWriting(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NONBLOCK, 0o666)
	if err != nil {
		return nil, err
	}
	return file, nil
}

func fillUpload(file *os.File, from io.Reader, owner account, metadata map[string]string) error {
	if owner.credential() != nil {
		if err := file.Chown(int(owner.uid), int(owner.gid)); err != nil {
			return err
		}
	}
	buffer := chunks.Get().(*[]byte)
	defer chunks.Put(buffer)
	// The wrappers hide ReadFrom and WriteTo, which would bring small buffers of their own.
	if _, err := io.CopyBuffer(struct{ io.Writer }{file}, bodyReader{from}, *buffer); err != nil {
		return err
	}
	err := writeMetadata(file, metadata)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return httpErrorf(http.StatusBadRequest, "the filesystem of '%s' holds no metadata", file.Name())
	}
	return err
}

// bodyReader marks errors of the client's side, which are not the disk's.
type bodyReader struct {
	reader io.Reader
}

func (b bodyReader) Read(p []byte) (int, error) {
	n, err := b.reader.Read(p)
	if err != nil && err != io.EOF {
		err = httpErrorf(http.StatusBadRequest, "read the body: %v", err)
	}
	return n, err
}

// composeRequest is the body of POST /files/compose.
type composeRequest struct {
	Sources     []string `json:"source_paths"`
	Destination string   `json:"destination"`
	Username    string   `json:"username"`
}

// serveCompose joins files into one and removes them: the end of an upload in pieces.
func (a *Agent) serveCompose(w http.ResponseWriter, r *http.Request) {
	entry, err := a.compose(w, r)
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, entry)
}

func (a *Agent) compose(w http.ResponseWriter, r *http.Request) (*fileInfo, error) {
	var request composeRequest
	if err := readJSON(w, r, &request); err != nil {
		return nil, err
	}
	if len(request.Sources) == 0 || len(request.Sources) > maxSources || request.Destination == "" {
		return nil, httpErrorf(http.StatusBadRequest, "compose takes 1 to %d source_paths and a destination", maxSources)
	}
	owner, err := a.fileUser(request.Username, r.Header)
	if err != nil {
		return nil, err
	}
	destination, err := a.filePath(request.Destination, owner)
	if err != nil {
		return nil, err
	}
	var sources []string
	for _, name := range request.Sources {
		source, err := a.filePath(name, owner)
		if err != nil {
			return nil, err
		}
		sources = append(sources, source)
	}
	if err := join(destination, sources, owner); err != nil {
		return nil, err
	}
	return &fileInfo{Name: filepath.Base(destination), Path: destination, Type: "file"}, nil
}

// join writes beside the destination first, so that a source may be the destination, and a failure leaves
// all as it was.
func join(destination string, sources []string, owner account) error {
	if err := makeParents(destination, owner); err != nil {
		return fileHTTPError(destination, err)
	}
	if info, err := os.Stat(destination); err == nil && info.IsDir() {
		return httpErrorf(http.StatusBadRequest, "path '%s' is a directory", destination)
	}
	file, err := os.CreateTemp(filepath.Dir(destination), ".compose-")
	if err != nil {
		return fileHTTPError(destination, err)
	}
	err = appendAll(file, sources, owner)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(file.Name(), destination)
	}
	if err != nil {
		os.Remove(file.Name())
		return fileHTTPError(destination, err)
	}
	for _, source := range sources {
		if source == destination {
			continue
		}
		if err := os.Remove(source); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a source: %w", err)
		}
	}
	return nil
}

func appendAll(to *os.File, sources []string, owner account) error {
	for _, source := range sources {
		from, _, err := openRegular(source)
		if err != nil {
			return fileHTTPError(source, err)
		}
		_, err = io.Copy(to, from) // copy_file_range, where the filesystem has it
		from.Close()
		if err != nil {
			return err
		}
	}
	if err := to.Chmod(0o644); err != nil {
		return err
	}
	return own(to.Name(), owner)
}
