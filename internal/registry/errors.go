package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/vmsan/vmsan/api"
)

// maxSaid bounds what is shown of a registry's own words.
const maxSaid = 200

// explain turns what went wrong in asking a source for something into what
// the user can do about it. Errors that have a code keep it.
func (s *source) explain(what string, err error) error {
	host := s.repo.RegistryStr()
	var known *api.Error
	var answer *transport.Error
	var certificate *tls.CertificateVerificationError
	var timeout net.Error
	var file *fs.PathError
	switch {
	case err == nil, errors.Is(err, context.Canceled) && !errors.Is(err, errStalled), errors.As(err, &known), errors.As(err, &file):
		return err
	case errors.As(err, &answer):
		return s.explainStatus(what, answer)
	case errors.As(err, &certificate), errors.As(err, &x509.UnknownAuthorityError{}):
		return api.Errorf(api.ErrRegistry, "%s from %s: its certificate is not trusted: %s", what, host, words(err)).
			WithHint("name the file of its CA as \"ca\" of %s in registries.json", host)
	case errors.Is(err, errStalled), errors.As(err, &timeout) && timeout.Timeout():
		return api.Errorf(api.ErrTimeout, "%s from %s: no answer in time: %s", what, host, words(err)).WithHint("try again")
	case errors.Is(err, errPlain), errors.Is(err, http.ErrSchemeMismatch):
		return api.Errorf(api.ErrRegistry, "%s from %s: it does not speak TLS: %s", what, host, words(err)).
			WithHint("if that is as it should be, set \"insecure\" of %s in registries.json", host)
	}
	return api.Errorf(api.ErrRegistry, "%s from %s: %s", what, host, words(err))
}

func (s *source) explainStatus(what string, answer *transport.Error) error {
	host, said := s.repo.RegistryStr(), status(answer)
	switch code := answer.StatusCode; {
	case code == http.StatusUnauthorized:
		return api.Errorf(api.ErrRegistryAuth, "%s from %s: no access: %s", what, host, said).
			WithHint("there is no such repository, or it needs credentials in the docker configuration: docker login %s", host)
	case code == http.StatusForbidden:
		return api.Errorf(api.ErrRegistryAuth, "%s from %s: access denied: %s", what, host, said).
			WithHint("the credentials for %s may not pull %s", host, s.repo.RepositoryStr())
	case code == http.StatusNotFound:
		return api.Errorf(api.ErrImageNotFound, "%s from %s: not there: %s", what, host, said).
			WithHint("check repository and tag; some registries also say this of what one may not see")
	case code == http.StatusTooManyRequests:
		return api.Errorf(api.ErrRegistryBusy, "%s from %s: too many requests: %s", what, host, said).
			WithHint("try again later, or with credentials, which often raise the limit: docker login %s", host)
	case passingStatus(code):
		return api.Errorf(api.ErrRegistry, "%s from %s: it fails: %s", what, host, said).WithHint("try again later")
	}
	return api.Errorf(api.ErrRegistry, "%s from %s: %s", what, host, said)
}

// status is the code of an answer and the first thing a registry said of it.
func status(answer *transport.Error) string {
	text := http.StatusText(answer.StatusCode)
	if text == "" {
		text = "unknown status"
	}
	if len(answer.Errors) > 0 {
		d := answer.Errors[0]
		text += ": " + printable(strings.TrimSuffix(string(d.Code)+": "+d.Message, ": "))
	}
	return printable(text)
}

// words says what went wrong, without the address that was asked: it may have
// a signature in it that lets others have the layer.
func words(err error) string {
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	return printable(err.Error())
}

// printable is what may be shown of a registry's words.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
	if len(s) > maxSaid {
		s = strings.ToValidUTF8(s[:maxSaid], "") + "…"
	}
	return s
}
