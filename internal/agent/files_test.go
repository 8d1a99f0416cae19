package agent

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/testenv"
)

func fileURL(base, path string, more ...string) string {
	query := url.Values{}
	if path != "" {
		query.Set("path", path)
	}
	for i := 0; i < len(more); i += 2 {
		query.Set(more[i], more[i+1])
	}
	return base + "/files?" + query.Encode()
}

func TestDownload(t *testing.T) {
	g := newGuest(t)
	path := filepath.Join(g.root, "hällo.txt")
	want := strings.Repeat("some text\n", 1000)
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
	plain, text := get(t, g.host, http.MethodGet, fileURL(hostURL, path), nil, "Accept-Encoding", "identity")
	if plain.StatusCode != 200 || text != want || plain.Header.Get("Vary") != "Accept-Encoding" {
		t.Errorf("plain: status %d, %d bytes, header %v", plain.StatusCode, len(text), plain.Header)
	}
	if got := plain.Header.Get("Content-Disposition"); got != "inline; filename*=utf-8''h%C3%A4llo.txt" {
		t.Errorf("Content-Disposition %q", got)
	}
	packed, text := get(t, g.host, http.MethodGet, fileURL(hostURL, path), nil, "Accept-Encoding", "gzip, deflate")
	reader, err := gzip.NewReader(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(reader); err != nil || string(got) != want || packed.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("gzip: %d bytes, error %v, header %v", len(got), err, packed.Header)
	}
	part, text := get(t, g.host, http.MethodGet, fileURL(hostURL, path), nil, "Range", "bytes=5-8", "Accept-Encoding", "gzip")
	if part.StatusCode != 206 || text != "text" {
		t.Errorf("range: status %d, %q", part.StatusCode, text)
	}
	same, _ := get(t, g.host, http.MethodGet, fileURL(hostURL, path), nil, "If-Modified-Since", plain.Header.Get("Last-Modified"), "Accept-Encoding", "gzip")
	if same.StatusCode != 304 {
		t.Errorf("not modified: status %d", same.StatusCode)
	}
}

// Files of /proc have no size, yet are not empty.
func TestDownloadUnsized(t *testing.T) {
	g := newGuest(t)
	empty := g.write(t, "empty", "")
	for _, encoding := range []string{"identity", "gzip"} {
		_, text := get(t, g.host, http.MethodGet, fileURL(hostURL, "/proc/self/status"), nil, "Accept-Encoding", encoding)
		if text == "" {
			t.Errorf("%s: got nothing", encoding)
		}
	}
	if response, text := get(t, g.host, http.MethodGet, fileURL(hostURL, empty), nil, "Accept-Encoding", "identity"); response.StatusCode != 200 || text != "" {
		t.Errorf("empty file: status %d, %q", response.StatusCode, text)
	}
}

func TestDownloadErrors(t *testing.T) {
	g := newGuest(t)
	fifo := filepath.Join(g.root, "fifo")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		url    string
		header []string
		status int
		text   string
	}{
		{fileURL(hostURL, "/no/such"), nil, 404, "path '/no/such' does not exist"},
		{fileURL(hostURL, g.root), nil, 400, "is a directory"},
		{fileURL(hostURL, fifo), nil, 400, "not a regular file"},
		{fileURL(hostURL, "~other/x"), nil, 400, "home of another user"},
		{fileURL(hostURL, "/etc/hostname\x00"), nil, 400, "NUL"},
		{fileURL(hostURL, g.root+"/etc/passwd", "username", "nobody-here"), nil, 401, "invalid username: 'nobody-here'"},
		{fileURL(hostURL, g.root+"/etc/passwd"), []string{"Accept-Encoding", "br, *;q=0"}, 406, "no acceptable encoding"},
	} {
		response, text := get(t, g.host, http.MethodGet, c.url, nil, c.header...)
		var failure httpError
		if err := json.Unmarshal([]byte(text), &failure); err != nil || response.StatusCode != c.status || failure.Code != c.status || !strings.Contains(failure.Message, c.text) {
			t.Errorf("%s: status %d, body %s; want %d with %q", c.url, response.StatusCode, text, c.status, c.text)
		}
	}
}

// form makes a multipart body of pairs of a filename and its contents.
func form(t *testing.T, pairs ...string) (io.Reader, string) {
	t.Helper()
	body := &bytes.Buffer{}
	writer := multipart.NewWriter(body)
	for i := 0; i < len(pairs); i += 2 {
		part, err := writer.CreatePart(textproto.MIMEHeader{
			"Content-Disposition": {fmt.Sprintf(`form-data; name="file"; filename="%s"`, pairs[i])},
		})
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(part, pairs[i+1])
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	return body, writer.FormDataContentType()
}

func TestUploadParts(t *testing.T) {
	g := newGuest(t)
	one, two := filepath.Join(g.root, "new/dir/öne"), filepath.Join(g.root, "two")
	if err := os.WriteFile(two, []byte("longer than what comes"), 0o600); err != nil {
		t.Fatal(err)
	}
	body, kind := form(t, one, "1", two, "22")
	response, text := get(t, g.host, http.MethodPost, fileURL(hostURL, ""), body, "Content-Type", kind)
	var written []fileInfo
	if err := json.Unmarshal([]byte(text), &written); err != nil || response.StatusCode != 200 {
		t.Fatalf("status %d, body %s", response.StatusCode, text)
	}
	if len(written) != 2 || written[0].Name != "öne" || written[0].Path != one || written[0].Type != "file" || written[1].Path != two {
		t.Errorf("got %+v", written)
	}
	for path, want := range map[string]string{one: "1", two: "22"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: got %q, error %v", path, got, err)
		}
	}
	if info, err := os.Stat(filepath.Dir(one)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("parent: %v, error %v", info, err)
	}
}

func TestUploadOctetStream(t *testing.T) {
	g := newGuest(t)
	path := filepath.Join(g.root, "big")
	want := bytes.Repeat([]byte("\x00\x01\xfe\xff"), 1<<20)
	response, text := get(t, g.host, http.MethodPost, fileURL(hostURL, path), bytes.NewReader(want), "Content-Type", "application/octet-stream")
	if response.StatusCode != 200 {
		t.Fatalf("status %d, body %s", response.StatusCode, text)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, error %v", len(got), err)
	}
	packed := &bytes.Buffer{}
	writer := gzip.NewWriter(packed)
	io.WriteString(writer, "small")
	writer.Close()
	response, text = get(t, g.host, http.MethodPost, fileURL(hostURL, path), packed, "Content-Type", "application/octet-stream", "Content-Encoding", "gzip")
	if response.StatusCode != 200 {
		t.Fatalf("status %d, body %s", response.StatusCode, text)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "small" {
		t.Errorf("got %d bytes, error %v", len(got), err)
	}
}

func TestUploadErrors(t *testing.T) {
	g := newGuest(t)
	twice, twiceKind := form(t, g.root+"/x", "1", g.root+"/./x", "2")
	none, noneKind := form(t)
	directory, directoryKind := form(t, g.root, "1")
	for name, c := range map[string]struct {
		url    string
		body   io.Reader
		header []string
		status int
		text   string
	}{
		"twice":     {fileURL(hostURL, ""), twice, []string{"Content-Type", twiceKind}, 400, "uploaded twice"},
		"none":      {fileURL(hostURL, ""), none, []string{"Content-Type", noneKind}, 400, "no part is called"},
		"directory": {fileURL(hostURL, ""), directory, []string{"Content-Type", directoryKind}, 400, "is a directory"},
		"type":      {fileURL(hostURL, "/x"), strings.NewReader(""), []string{"Content-Type", "text/plain"}, 400, "content type 'text/plain'"},
		"no type":   {fileURL(hostURL, "/x"), strings.NewReader(""), nil, 400, "content type"},
		"no path":   {fileURL(hostURL, ""), strings.NewReader(""), []string{"Content-Type", "application/octet-stream"}, 400, "needs the query parameter path"},
		"encoding":  {fileURL(hostURL, "/x"), strings.NewReader(""), []string{"Content-Type", "application/octet-stream", "Content-Encoding", "br"}, 400, "content encoding"},
		"not gzip":  {fileURL(hostURL, "/x"), strings.NewReader("plain"), []string{"Content-Type", "application/octet-stream", "Content-Encoding", "gzip"}, 400, "read gzip"},
		"user":      {fileURL(hostURL, "/x", "username", "nobody-here"), strings.NewReader(""), []string{"Content-Type", "application/octet-stream"}, 401, "invalid username"},
		"key":       {fileURL(hostURL, "/x"), strings.NewReader(""), []string{"Content-Type", "application/octet-stream", "X-Metadata-" + strings.Repeat("k", 247), "v"}, 400, "metadata key"},
		"value":     {fileURL(hostURL, "/x"), strings.NewReader(""), []string{"Content-Type", "application/octet-stream", "X-Metadata-K", "\xfc"}, 400, "not printable"},
		"metadata":  {fileURL(hostURL, "/x"), strings.NewReader(""), []string{"Content-Type", "application/octet-stream", "X-Metadata-K", strings.Repeat("v", maxMetadata)}, 400, "more than"},
	} {
		response, text := get(t, g.host, http.MethodPost, c.url, c.body, c.header...)
		if response.StatusCode != c.status || !strings.Contains(text, c.text) {
			t.Errorf("%s: status %d, body %s; want %d with %q", name, response.StatusCode, text, c.status, c.text)
		}
	}
}

func TestUploadOwner(t *testing.T) {
	testenv.RequireRoot(t)
	g := newGuest(t)
	path := filepath.Join(g.root, "made/for/ann")
	response, text := get(t, g.host, http.MethodPost, fileURL(hostURL, path, "username", "4321"), strings.NewReader("x"), "Content-Type", "application/octet-stream")
	if response.StatusCode != 200 {
		t.Fatalf("status %d, body %s", response.StatusCode, text)
	}
	for _, made := range []string{path, filepath.Dir(path), filepath.Join(g.root, "made")} {
		var stat syscall.Stat_t
		if err := syscall.Stat(made, &stat); err != nil || stat.Uid != 4321 || stat.Gid != 4321 {
			t.Errorf("%s belongs to %d:%d, error %v", made, stat.Uid, stat.Gid, err)
		}
	}
	var stat syscall.Stat_t
	if err := syscall.Stat(g.root, &stat); err != nil || stat.Uid == 4321 {
		t.Errorf("a directory that was there was given away, error %v", err)
	}
}

func TestUploadMetadata(t *testing.T) {
	g := newGuest(t)
	path := filepath.Join(g.root, "x")
	put := func(header ...string) (int, string) {
		response, text := get(t, g.host, http.MethodPost, fileURL(hostURL, path), strings.NewReader("x"), append(header, "Content-Type", "application/octet-stream")...)
		return response.StatusCode, text
	}
	status, text := put("X-Metadata-Kind", "one", "X-Metadata-Old", "gone soon")
	if status != 200 || !strings.Contains(text, `"metadata":{"kind":"one","old":"gone soon"}`) {
		t.Fatalf("status %d, body %s", status, text)
	}
	if status, text := put("X-Metadata-Kind", "two"); status != 200 {
		t.Fatalf("status %d, body %s", status, text)
	}
	if got := readMetadata(path); len(got) != 1 || got["kind"] != "two" {
		t.Errorf("got %v", got)
	}
}

func TestCompose(t *testing.T) {
	g := newGuest(t)
	var sources []string
	for i := range 3 {
		source := filepath.Join(g.root, "part"+itoa(i))
		if err := os.WriteFile(source, []byte(strings.Repeat(itoa(i), 3)), 0o600); err != nil {
			t.Fatal(err)
		}
		sources = append(sources, source)
	}
	destination := filepath.Join(g.root, "deep/whole")
	body, err := json.Marshal(composeRequest{Sources: sources, Destination: destination})
	if err != nil {
		t.Fatal(err)
	}
	response, text := get(t, g.host, http.MethodPost, hostURL+"/files/compose", bytes.NewReader(body))
	if response.StatusCode != 200 || !strings.Contains(text, destination) {
		t.Fatalf("status %d, body %s", response.StatusCode, text)
	}
	if got, err := os.ReadFile(destination); err != nil || string(got) != "000111222" {
		t.Errorf("got %q, error %v", got, err)
	}
	for _, source := range sources {
		if _, err := os.Stat(source); !os.IsNotExist(err) {
			t.Errorf("%s is still there", source)
		}
	}
	response, text = get(t, g.host, http.MethodPost, hostURL+"/files/compose", bytes.NewReader(body))
	if response.StatusCode != 404 {
		t.Errorf("missing sources: status %d, body %s", response.StatusCode, text)
	}
	if got, err := os.ReadFile(destination); err != nil || string(got) != "000111222" {
		t.Errorf("after a failure: got %q, error %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(g.root, "deep/.compose-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestToken(t *testing.T) {
	g := newGuest(t, func(c *Config) { c.AccessToken = "secret" })
	client, base := g.public.Client(), g.public.URL
	path := filepath.Join(g.root, "etc/passwd")
	const refused = `{"code":401,"message":"unauthorized access, please provide a valid access token or method signing if supported"}`
	for _, c := range []struct {
		method, url, token string
		status             int
		text               string
	}{
		{"GET", base + "/health", "", 204, ""},
		{"GET", base + "/envs", "", 401, refused},
		{"GET", base + "/envs", "wrong", 401, refused},
		{"GET", base + "/envs", "secret", 200, "{}"},
		{"GET", base + "/metrics", "", 401, refused},
		{"POST", base + "/files/compose", "", 401, refused},
		{"POST", base + "/process.Process/List", "", 401, refused},
		{"POST", base + "/filesystem.Filesystem/Stat", "", 401, refused},
		{"GET", fileURL(base, path), "", 401, "missing signature"},
		{"GET", fileURL(base, path), "wrong", 401, refused},
		{"GET", fileURL(base, path), "secret", 200, "root"},
		{"GET", hostURL + "/envs", "", 200, "{}"},
		{"GET", fileURL(hostURL, path), "", 200, "root"},
		{"OPTIONS", base + "/envs", "", 204, ""},
	} {
		door := client
		if strings.HasPrefix(c.url, hostURL) {
			door = g.host
		}
		response, text := get(t, door, c.method, c.url, nil, tokenHeader, c.token, "Accept-Encoding", "identity")
		if response.StatusCode != c.status || !strings.Contains(strings.TrimSpace(text), c.text) {
			t.Errorf("%s %s with %q: status %d, body %s", c.method, c.url, c.token, response.StatusCode, text)
		}
	}
}

func TestSignature(t *testing.T) {
	g := newGuest(t, func(c *Config) { c.AccessToken = "secret" })
	client, base := g.public.Client(), g.public.URL
	path := filepath.Join(g.root, "etc/passwd")
	user := currentUser(t)
	later, earlier := fmt.Sprint(time.Now().Unix()+60), fmt.Sprint(time.Now().Unix()-60)
	for name, c := range map[string]struct {
		query  []string
		status int
		text   string
	}{
		"good":            {[]string{"signature", sign(path, "read", "", "secret", "")}, 200, ""},
		"good with user":  {[]string{"username", user, "signature", sign(path, "read", user, "secret", "")}, 200, ""},
		"good for now":    {[]string{"signature", sign(path, "read", "", "secret", later), "signature_expiration", later}, 200, ""},
		"expired":         {[]string{"signature", sign(path, "read", "", "secret", earlier), "signature_expiration", earlier}, 401, `{"code":401,"message":"signature is already expired"}`},
		"extended":        {[]string{"signature", sign(path, "read", "", "secret", earlier), "signature_expiration", later}, 401, "invalid signature"},
		"to write":        {[]string{"signature", sign(path, "write", "", "secret", "")}, 401, "invalid signature"},
		"for another":     {[]string{"signature", sign(path, "read", "ann", "secret", "")}, 401, "invalid signature"},
		"other token":     {[]string{"signature", sign(path, "read", "", "", "")}, 401, "invalid signature"},
		"not a time":      {[]string{"signature", sign(path, "read", "", "secret", "soon"), "signature_expiration", "soon"}, 400, "not a number"},
		"none":            {nil, 401, "missing signature"},
		"expiration only": {[]string{"signature_expiration", later}, 401, "missing signature"},
	} {
		response, text := get(t, client, http.MethodGet, fileURL(base, path, c.query...), nil, "Accept-Encoding", "identity")
		if response.StatusCode != c.status || !strings.Contains(strings.TrimSpace(text), c.text) {
			t.Errorf("%s: status %d, body %s", name, response.StatusCode, text)
		}
	}
}

// The signature of a known input, made with other tools.
func TestSign(t *testing.T) {
	// printf '/a:read:user:token:10' | openssl dgst -sha256 -binary | base64 | tr -d =
	if got, want := sign("/a", "read", "user", "token", "10"), "v1_MupFMKnJzakB6Go6U1ZLgn1fo8FPveUBId/0ATHOEvY"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := sign("/a", "write", "", "token", ""), "v1_OgKahvkOCJDNPE838bX819/ZGm4Wa5ORAEZH6pTP45U"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzCheckSignature(f *testing.F) {
	now := time.Unix(100, 0)
	f.Add("path=/a&signature=" + sign("/a", "read", "", "t", ""))
	f.Add("path=/a&signature_expiration=99&signature=" + url.QueryEscape(sign("/a", "read", "", "t", "99")))
	f.Fuzz(func(t *testing.T, raw string) {
		query, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		if checkSignature(query, "read", "t", now) != nil {
			return
		}
		expiration := query.Get("signature_expiration")
		if query.Get("signature") != sign(query.Get("path"), "read", query.Get("username"), "t", expiration) {
			t.Errorf("%q passed", raw)
		}
	})
}

func TestResolve(t *testing.T) {
	for _, c := range []struct{ path, workdir, want string }{
		{"", "", "/home/ann"},
		{"", "/srv/", "/srv"},
		{"", "~/w", "/home/ann/w"},
		{"", "w", "/home/ann/w"},
		{"~", "/work", "/home/ann"},
		{"~/a/../b", "", "/home/ann/b"},
		{"a/b", "/work", "/home/ann/a/b"},
		{"/a/./b/", "/work", "/a/b"},
		{"/../a", "", "/a"},
	} {
		if got, err := resolve(c.path, "/home/ann", c.workdir); err != nil || got != c.want {
			t.Errorf("%q with workdir %q: got %q, error %v; want %q", c.path, c.workdir, got, err, c.want)
		}
	}
	for _, path := range []string{"~bob", "a\x00b", strings.Repeat("a", maxPath+1)} {
		if got, err := resolve(path, "/home/ann", ""); err == nil {
			t.Errorf("%.20q: got %q", path, got)
		}
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("~/a", "w")
	f.Add("../..", "")
	f.Fuzz(func(t *testing.T, path, workdir string) {
		got, err := resolve(path, "/home/ann", workdir)
		if err == nil && (!filepath.IsAbs(got) || filepath.Clean(got) != got) {
			t.Errorf("%q and %q: got %q", path, workdir, got)
		}
	})
}

func FuzzParseAccept(f *testing.F) {
	f.Add("gzip;q=0.5, identity, *;q=0")
	f.Fuzz(func(t *testing.T, header string) {
		for name, weight := range parseAccept(header) {
			if name == "" || weight < 0 || weight > 1 {
				t.Errorf("%q: %q has weight %v", header, name, weight)
			}
		}
	})
}

func FuzzLookup(f *testing.F) {
	f.Add("ann", "ann:x:1:2::/home/ann:/bin/sh\n", "staff:x:5:ann\n")
	f.Add("1:staff", "root:x:0:0:::\nx", "staff:x:5:ann,bob\n::::")
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		etc := t.TempDir()
		os.WriteFile(filepath.Join(etc, "passwd"), []byte(passwd), 0o600)
		os.WriteFile(filepath.Join(etc, "group"), []byte(group), 0o600)
		found, err := accounts{etc: etc}.lookup(spec)
		if err == nil && !filepath.IsAbs(found.home) {
			t.Errorf("%q has home %q", spec, found.home)
		}
	})
}
