package agent

import (
	"encoding/json"
	"net/http"

	"github.com/vmsan/vmsan/internal/filetree"
)

// Trailers of a tree that is sent: the error that ended it early, and
// otherwise what was sent, as JSON of filetree.Totals.
const (
	treeErrorTrailer  = "Vmsan-Error"
	treeTotalsTrailer = "Vmsan-Totals"
)

// serveTree sends a file or a tree as a tar stream, its top called name:
//
//	GET /vmsan/tree?path=/srv&name=srv
func (a *Agent) serveTree(w http.ResponseWriter, r *http.Request) {
	path, _, err := a.treePath(r)
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	w.Header().Set("Trailer", treeErrorTrailer+", "+treeTotalsTrailer)
	totals, err := filetree.Pack(r.Context(), w, path, filetree.PackOptions{Name: r.URL.Query().Get("name")})
	if err != nil && totals == (filetree.Totals{}) {
		// Nothing was sent yet, for it is sent in large pieces.
		w.Header().Del("Trailer")
		writeHTTPError(w, fileHTTPError(path, err))
		return
	}
	if err != nil {
		w.Header().Set(treeErrorTrailer, printableHeader(err.Error()))
		return
	}
	text, err := json.Marshal(totals)
	if err != nil {
		w.Header().Set(treeErrorTrailer, printableHeader(err.Error()))
		return
	}
	w.Header().Set(treeTotalsTrailer, string(text))
}

// printableHeader replaces what a header cannot hold.
func printableHeader(text string) string {
	out := []byte(text[:min(len(text), maxPath)])
	for i, c := range out {
		if c < ' ' || c > '~' {
			out[i] = '?'
		}
	}
	return string(out)
}

// takeTree unpacks a tar stream in a directory, or only what is called name in
// it if there is one. Files belong to the user, or
// with owners=keep to whom the stream says:
//
//	PUT /vmsan/tree?path=/srv&name=app&username=www-data
//
// It answers with JSON of filetree.Totals.
func (a *Agent) takeTree(w http.ResponseWriter, r *http.Request) {
	path, user, err := a.treePath(r)
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	o := filetree.UnpackOptions{Name: r.URL.Query().Get("name"), Trusted: true}
	if r.URL.Query().Get("owners") != "keep" {
		o.Owner = &filetree.Owner{UID: int(user.uid), GID: int(user.gid)}
	}
	totals, err := filetree.Unpack(r.Context(), r.Body, path, o)
	if err != nil {
		writeHTTPError(w, fileHTTPError(path, err))
		return
	}
	writeJSON(w, http.StatusOK, totals)
}

func (a *Agent) treePath(r *http.Request) (path string, user account, err error) {
	query := r.URL.Query()
	if user, err = a.fileUser(query.Get("username"), r.Header); err != nil {
		return "", account{}, err
	}
	path, err = a.filePath(query.Get("path"), user)
	return path, user, err
}
