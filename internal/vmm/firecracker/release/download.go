package release

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/vmsan/vmsan/api"
)

// Limits on a download.
const (
	answerTime   = 30 * time.Second
	stallTime    = 30 * time.Second
	maxSums      = 4 << 10
	maxRedirects = 5
)

var validVersion = regexp.MustCompile(`^[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}(-[0-9A-Za-z.]{1,32})?$`)

// download gets a release's archive, compares it with its checksum, and takes
// the programs out. Of Version the checksum is known, of others it is what the
// page says.
func download(ctx context.Context, from Source, archive, dir string) error {
	version := from.version()
	if !validVersion.MatchString(version) {
		return api.Errorf(api.ErrValidationChoice, "Invalid --firecracker-version: %.40q. Must be like %s.", version, Version).
			WithFlag("--firecracker-version")
	}
	base := from.URL
	if base == "" {
		base = DefaultURL
	}
	if err := checkURL(base); err != nil {
		return err
	}
	name := fmt.Sprintf("%s/v%[2]s/firecracker-v%[2]s-%[3]s.tgz", strings.TrimSuffix(base, "/"), version, arch())
	var want string
	var err error
	if version == Version {
		want = digests[arch()]
	} else {
		want, err = published(ctx, name)
	}
	if err == nil {
		err = fetch(ctx, name, want, archive)
	}
	if err != nil {
		return api.Errorf(api.ErrSetupDownload, "download Firecracker %s: %w", version, err).
			WithHint("vmsan setup --firecracker-url with a mirror; or, without internet, --bundle or --firecracker-dir")
	}
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unpack(file, dir); err != nil {
		return unusable("unpack it: %w", err)
	}
	return nil
}

// checkURL refuses ways on which others could change what comes.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err == nil && u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		err = errors.New("it has to begin with https://, or lead to this host")
	}
	if err != nil {
		return api.Errorf(api.ErrValidationChoice, "Invalid --firecracker-url: %.200q: %w", text, err).WithFlag("--firecracker-url")
	}
	return nil
}

func loopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}

// published gets the digest that is beside a file.
func published(ctx context.Context, name string) (string, error) {
	var sums strings.Builder
	if err := get(ctx, name+".sha256.txt", &sums, maxSums); err != nil {
		return "", err
	}
	digest, _, _ := strings.Cut(strings.TrimSpace(sums.String()), " ")
	if raw, err := hex.DecodeString(digest); err != nil || len(raw) != sha256.Size {
		return "", fmt.Errorf("its checksum is malformed: %.80q", digest)
	}
	return digest, nil
}

// fetch gets a file that has a digest.
func fetch(ctx context.Context, name, want, path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	sum := sha256.New()
	if err := get(ctx, name, io.MultiWriter(file, sum), maxArchive); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); !strings.EqualFold(got, want) {
		return fmt.Errorf("its checksum is %s, not %s", got, want)
	}
	return file.Close()
}

var client = &http.Client{
	Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: answerTime, TLSHandshakeTimeout: answerTime},
	CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fmt.Errorf("more than %d redirections", maxRedirects)
		}
		return checkURL(r.URL.String())
	},
}

// get writes what is at a URL to to, and fails if nothing comes for a while.
func get(ctx context.Context, name string, to io.Writer, most int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, name, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", name, response.Status)
	}
	stalled := time.AfterFunc(stallTime, func() { cancel(fmt.Errorf("nothing came for %s", stallTime)) })
	defer stalled.Stop()
	body := readerFunc(func(p []byte) (int, error) {
		stalled.Reset(stallTime)
		return response.Body.Read(p)
	})
	n, err := io.Copy(to, io.LimitReader(body, most+1))
	switch {
	case err != nil && context.Cause(ctx) != nil:
		return fmt.Errorf("%s: %w", name, context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	case n > most:
		return fmt.Errorf("%s: it is larger than %d bytes", name, most)
	}
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
