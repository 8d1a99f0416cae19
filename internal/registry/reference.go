package registry

import (
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/vmsan/vmsan/api"
)

// maxReference bounds a reference as it is typed.
const maxReference = 1024

// Reference names an image in a registry, by a tag or by the digest of its
// manifest.
type Reference struct{ ref name.Reference }

var (
	digestRef = regexp.MustCompile(`@sha256:[0-9a-f]{64}$`)
	// form is what the specification has, and the library is laxer about.
	form = regexp.MustCompile(`^(([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?/)?` +
		`[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$`)
)

// ParseReference reads [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]. A tag beside a
// digest is not looked at.
func ParseReference(s string) (Reference, error) {
	if hint := whyMalformed(s); hint != "" {
		return Reference{}, malformed(s).WithHint("%s", hint)
	}
	ref, err := name.ParseReference(s)
	if err != nil || !form.MatchString(s) {
		return Reference{}, malformed(s).WithHint("references are [HOST[:PORT]/]REPOSITORY[:TAG][@sha256:DIGEST], such as registry.example/team/app:1.2")
	}
	return Reference{ref}, nil
}

func malformed(s string) *api.Error {
	return api.Errorf(api.ErrValidationImageRef, "image reference %.200q is malformed", s)
}

// whyMalformed finds the mistakes that people make.
func whyMalformed(s string) string {
	repository, _, _ := strings.Cut(s, "@")
	if at := strings.LastIndexByte(repository, ':'); at > strings.LastIndexByte(repository, '/') {
		repository = repository[:at]
	}
	if _, path, ok := strings.Cut(repository, "/"); ok {
		repository = path
	}
	switch {
	case s == "":
		return "it is empty"
	case len(s) > maxReference:
		return "it is too long"
	case strings.Contains(s, "://"):
		return "leave the scheme away; registries.json says which registries are reached without TLS"
	case strings.HasPrefix(s, "sha256:"):
		return "a digest alone does not say where the image is: REPOSITORY@sha256:DIGEST"
	case strings.Contains(s, "@") && !digestRef.MatchString(s):
		return "behind @ stands sha256: and 64 hexadecimal digits"
	case repository != strings.ToLower(repository):
		return "repositories are in lower case"
	}
	return ""
}

// IsReference tells whether an image that is not known here may be asked of a
// registry.
func IsReference(s string) bool {
	_, err := ParseReference(s)
	return err == nil
}

// Name is the reference as short as it can be: what is default is left out.
// It is the name that the image gets here.
func (r Reference) Name() string {
	repo := r.ref.Context()
	text := strings.ToLower(repo.RegistryStr()) + "/" + repo.RepositoryStr()
	if repo.RegistryStr() == name.DefaultRegistry {
		text = strings.TrimPrefix(repo.RepositoryStr(), "library/")
	}
	if _, ok := r.ref.(name.Digest); ok {
		return text + "@" + r.ref.Identifier()
	}
	if tag := r.ref.Identifier(); tag != name.DefaultTag {
		return text + ":" + tag
	}
	return text
}

// Registry is the host that the image is asked of.
func (r Reference) Registry() string { return r.ref.Context().RegistryStr() }

func (r Reference) String() string { return r.ref.Name() }
