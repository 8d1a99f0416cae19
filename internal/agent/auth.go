package agent

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
)

const tokenHeader = "X-Access-Token"

// httpError is the JSON of a failed plain HTTP call.
type httpError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func (e *httpError) Error() string { return e.Message }

// httpErrorf makes an error that is answered with a status.
func httpErrorf(status int, format string, args ...any) *httpError {
	return &httpError{Code: status, Message: fmt.Sprintf(format, args...)}
}

func writeHTTPError(w http.ResponseWriter, err error) {
	var failure *httpError
	if !errors.As(err, &failure) {
		failure = &httpError{Code: http.StatusInternalServerError, Message: err.Error()}
	}
	writeJSON(w, failure.Code, failure)
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	// Fails only with the connection, and then nobody is there to be told.
	_ = json.NewEncoder(w).Encode(value)
}

var errUnauthorized = &httpError{
	Code:    http.StatusUnauthorized,
	Message: "unauthorized access, please provide a valid access token or method signing if supported",
}

type trustKey struct{}

// withTrust marks requests that came over the host's link.
func withTrust(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), trustKey{}, true)))
	})
}

func trusted(r *http.Request) bool {
	return r.Context().Value(trustKey{}) != nil
}

// requireToken lets through what needs no token, or checks it itself, and what shows the right one.
func (a *Agent) requireToken(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !needsToken(r) || a.showsToken(r) {
			next.ServeHTTP(w, r)
			return
		}
		writeHTTPError(w, errUnauthorized)
	})
}

func needsToken(r *http.Request) bool {
	switch r.Method + " " + r.URL.Path {
	case "GET /health", "GET /files", "HEAD /files", "POST /files":
		return false
	}
	return true
}

// showsToken tells if there is no token to show, or the request shows it.
func (a *Agent) showsToken(r *http.Request) bool {
	token := a.current().token
	return token == "" || sameSecret(token, r.Header.Get(tokenHeader))
}

// sameSecret takes as long for a near miss as for a far one. Hashes have one length, so that the secret's
// own length does not show either.
func sameSecret(secret, shown string) bool {
	want, got := sha256.Sum256([]byte(secret)), sha256.Sum256([]byte(shown))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

// authorizeFile lets a request for /files through that shows the token, or a signature made with it.
// operation is "read" or "write".
func (a *Agent) authorizeFile(r *http.Request, operation string) error {
	if trusted(r) || a.showsToken(r) {
		return nil
	}
	if r.Header.Get(tokenHeader) != "" {
		return errUnauthorized
	}
	return checkSignature(r.URL.Query(), operation, a.current().token, time.Now())
}

// checkSignature checks the signature of a URL: "v1_" and the unpadded base64 of a SHA-256.
func checkSignature(query url.Values, operation, token string, now time.Time) error {
	signature := query.Get("signature")
	if signature == "" {
		return httpErrorf(http.StatusUnauthorized, "missing signature query parameter")
	}
	expiration := query.Get("signature_expiration")
	wanted := sign(query.Get("path"), operation, query.Get("username"), token, expiration)
	if !sameSecret(wanted, signature) {
		return httpErrorf(http.StatusUnauthorized, "invalid signature")
	}
	if expiration == "" {
		return nil
	}
	second, err := strconv.ParseInt(expiration, 10, 64)
	if err != nil {
		return httpErrorf(http.StatusBadRequest, "signature_expiration '%s' is not a number of seconds", expiration)
	}
	if second < now.Unix() {
		return httpErrorf(http.StatusUnauthorized, "signature is already expired")
	}
	return nil
}

func sign(path, operation, user, token, expiration string) string {
	parts := []string{path, operation, user, token}
	if expiration != "" {
		parts = append(parts, expiration)
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// caller resolves the user of a request: named, or by HTTP Basic, or the default one.
func (a *Agent) caller(named string, header http.Header) (account, error) {
	if named == "" {
		named = basicUser(header)
	}
	if named == "" {
		named = a.current().user
	}
	found, err := a.accounts.lookup(named)
	if errors.Is(err, errUnknownUser) {
		return account{}, &unknownUserError{name: named}
	}
	return found, err
}

// basicUser reads the user of HTTP Basic. There is no password to check: who may call may be anyone.
func basicUser(header http.Header) string {
	request := http.Request{Header: header}
	name, _, _ := request.BasicAuth()
	return name
}

type unknownUserError struct {
	name string
}

func (e *unknownUserError) Error() string { return fmt.Sprintf("invalid username: '%s'", e.name) }

// rpcCaller is caller for Connect calls.
func (a *Agent) rpcCaller(named string, header http.Header) (account, error) {
	found, err := a.caller(named, header)
	var unknown *unknownUserError
	if errors.As(err, &unknown) {
		return account{}, connect.NewError(connect.CodeUnauthenticated, err)
	}
	if err != nil {
		return account{}, connect.NewError(connect.CodeInternal, err)
	}
	return found, nil
}

// allowOrigins lets web pages of any origin call: what protects the API is the token, and it is sent by
// the page itself, never by the browser alone.
func allowOrigins(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Access-Control-Allow-Origin", "*")
		header.Set("Access-Control-Expose-Headers", exposedHeaders)
		if r.Method != http.MethodOptions {
			next.ServeHTTP(w, r)
			return
		}
		header.Add("Vary", "Access-Control-Request-Headers")
		header.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
		header.Set("Access-Control-Allow-Headers", allowedHeaders(r))
		header.Set("Access-Control-Max-Age", "7200")
		w.WriteHeader(http.StatusNoContent)
	})
}

const exposedHeaders = "Content-Encoding, Connect-Content-Encoding, Content-Disposition, Content-Length, " +
	"Content-Range, Etag, Last-Modified, Location, Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin"

// allowedHeaders repeats what is asked for: "*" does not cover Authorization.
func allowedHeaders(r *http.Request) string {
	if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
		return asked
	}
	return "*"
}
