package agent

import (
	"bufio"
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
//
// POST sends those files alone that the body lists, as filetree.Entry: Size and
// Digest are of what is there of them at the other side.
func (a *Agent) serveTree(w http.ResponseWriter, r *http.Request) {
	path, _, err := a.treePath(r)
	o := filetree.PackOptions{Name: r.URL.Query().Get("name"), Direct: true}
	if err == nil && r.Method == http.MethodPost {
		if o.Wanted, err = filetree.ReadWanted(r.Body); err != nil {
			err = httpErrorf(http.StatusBadRequest, "%v", err)
		}
	}
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	w.Header().Set("Trailer", treeErrorTrailer+", "+treeTotalsTrailer)
	totals, err := filetree.Pack(r.Context(), w, path, o)
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

// serveList lists a file or a tree, as records of filetree.Entry:
//
//	GET /vmsan/list?path=/srv&name=.&digests=yes
//
// With destination=yes it is where a copy is to go: what is not there is an
// empty list, and partial files have digests.
func (a *Agent) serveList(w http.ResponseWriter, r *http.Request) {
	path, _, err := a.treePath(r)
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	query := r.URL.Query()
	o := filetree.ListOptions{Name: query.Get("name"), Destination: query.Has("destination"), Digests: query.Has("digests")}
	w.Header().Set("Trailer", treeErrorTrailer)
	listing, sent := bufio.NewWriterSize(w, 64<<10), false
	err = filetree.List(r.Context(), path, o, func(e filetree.Entry) error {
		sent = true
		return filetree.WriteEntry(listing, e)
	})
	if err == nil {
		err = filetree.EndEntries(listing)
	}
	switch {
	case err != nil && !sent:
		w.Header().Del("Trailer")
		writeHTTPError(w, fileHTTPError(path, err))
	case err != nil:
		listing.Flush()
		w.Header().Set(treeErrorTrailer, printableHeader(err.Error()))
	}
}

// takeTree unpacks a tar stream in a directory, or only what is called name in
// it if there is one. Files belong to the user that is named, or
// with owners=keep to whom the stream says:
//
//	PUT /vmsan/tree?path=/srv&name=app&username=www-data
//
// With resume=yes it keeps what there is of a large file if the stream breaks
// off, with removals=yes the stream may remove files, and with make=yes the
// directory is made if it is not there.
//
// It answers with JSON of filetree.Totals.
func (a *Agent) takeTree(w http.ResponseWriter, r *http.Request) {
	path, owner, err := a.treePath(r)
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	query := r.URL.Query()
	keep := query.Get("owners") == "keep"
	o := filetree.UnpackOptions{
		Name: query.Get("name"), Trusted: keep, Resume: query.Has("resume"), Removals: query.Has("removals"), Direct: true,
	}
	if !keep {
		o.Owner = &filetree.Owner{UID: int(owner.uid), GID: int(owner.gid)}
	}
	if query.Has("make") {
		if err := makeDirectories(path, owner); err != nil {
			writeHTTPError(w, fileHTTPError(path, err))
			return
		}
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
