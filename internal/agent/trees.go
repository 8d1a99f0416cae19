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
// it if there is one. Files belong to the user that is named, or
// with owners=keep to whom the stream says:
//
//	PUT /vmsan/tree?path=/srv&name=app&username=www-data
//
// It answers with JSON of filetree.Totals.
func (a *Agent) takeTree(w http.ResponseWriter, r *http.Request) {
	path, owner, err := a.treePath(r)
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	keep := r.URL.Query().Get("owners") == "keep"
	o := filetree.UnpackOptions{Name: r.URL.Query().Get("name"), Trusted: keep}
	if !keep {
		o.Owner = &filetree.Owner{UID: int(owner.uid), GID: int(owner.gid)}
	}
	totals, err := filetree.Unpack(r.Context(), r.Body, path, o)
	if err != nil {
		writeHTTPError(w, fileHTTPError(path, err))
		return
	}
	writeJSON(w, http.StatusOK, totals)
}

// treePath is the path of a request, which begins at the home of the guest's
// own user whoever is to own the files, and who that is.
func (a *Agent) treePath(r *http.Request) (path string, owner account, err error) {
	query := r.URL.Query()
	user, err := a.fileUser("", r.Header)
	if err == nil {
		owner, err = a.fileUser(query.Get("username"), r.Header)
	}
	if err == nil {
		path, err = a.filePath(query.Get("path"), user)
	}
	return path, owner, err
}
