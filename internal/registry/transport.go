package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/vmsan/vmsan/api"
)

const (
	connectTimeout = 15 * time.Second
	answerTimeout  = 30 * time.Second
	maxHeader      = 64 << 10
)

// source is one place that an image may come from: its registry, or a mirror.
type source struct {
	repo name.Repository
	host Host
	// first is how long to wait before the second try of a request, answer how
	// long for the beginning of an answer, stall for each part of the rest.
	first, answer, stall time.Duration
	tries                int // of each request
	keychain             authn.Keychain

	mu     sync.Mutex
	client *http.Client // nil until login went well
	base   *http.Transport
}

// login finds out how the registry wants to be talked to, once.
func (s *source) login(ctx context.Context) (*http.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		return s.client, nil
	}
	auth, err := authn.Resolve(ctx, s.keychain, s.repo)
	if err != nil {
		return nil, api.Errorf(api.ErrRegistryAuth, "credentials for %s cannot be read: %s", s.repo.RegistryStr(), printable(err.Error())).
			WithHint("look at the docker configuration, ~/.docker/config.json, and the credential helper it names")
	}
	if s.base == nil {
		if s.base, err = newTransport(s.repo.RegistryStr(), s.host, s.answer); err != nil {
			return nil, err
		}
	}
	limited := retrying{inner: pacing{&guarded{inner: s.base, plain: s.host.Insecure}, s.stall}, first: s.first, tries: s.tries}
	// What answers the first question is read to its end, however long it is.
	ctx, cancel := context.WithTimeout(ctx, 2*s.stall)
	defer cancel()
	authorized, err := transport.NewWithContext(ctx, s.repo.Registry, auth, limited, []string{s.repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	s.client = &http.Client{Transport: authorized, CheckRedirect: checkRedirect}
	return s.client, nil
}

func (s *source) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base != nil {
		s.base.CloseIdleConnections()
	}
}

// get asks for a manifest or blob of the repository. The answer has one of
// the accepted status codes.
func (s *source) get(ctx context.Context, kind, id string, header http.Header, accepted ...int) (*http.Response, error) {
	client, err := s.login(ctx)
	if err != nil {
		return nil, err
	}
	// The transport knows which scheme the registry really has.
	u := url.URL{Scheme: s.repo.Scheme(), Host: s.repo.RegistryStr(), Path: fmt.Sprintf("/v2/%s/%s/%s", s.repo.RepositoryStr(), kind, id)}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for key, values := range header {
		req.Header[key] = values
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, accepted...); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

func newTransport(registry string, host Host, answer time.Duration) (*http.Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: host.Insecure}
	if host.CA != "" {
		pool, err := trusted(host.CA)
		if err != nil {
			return nil, api.Errorf(api.ErrRegistryConfig, "certificates for %s: %w", registry, err)
		}
		config.RootCAs = pool
	}
	r := &reach{registry: hostname(registry)}
	return &http.Transport{
		Proxy:                  r.proxy,
		DialContext:            r.dial,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    connectTimeout,
		ResponseHeaderTimeout:  answer,
		MaxResponseHeaderBytes: maxHeader,
		IdleConnTimeout:        answerTimeout,
		MaxIdleConnsPerHost:    parallel,
		// Digests are of what the registry stores.
		DisableCompression: true,
		ForceAttemptHTTP2:  true,
	}, nil
}

// trusted is the system's certificates and those in a file.
func trusted(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificates in PEM", path)
	}
	return pool, nil
}

// guarded refuses to speak plain HTTP to those who have to speak TLS.
type guarded struct {
	inner http.RoundTripper
	plain bool
}

var errPlain = errors.New("plain HTTP is not allowed")

func (g *guarded) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.plain && !isLoopback(req.URL.Hostname()) {
		return nil, errPlain
	}
	return g.inner.RoundTrip(req)
}
