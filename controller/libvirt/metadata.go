package libvirt

import (
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/tabi-lisp/tabi/lisp"
)

// Namespace is that of our element in a domain's <metadata>; the package's documentation shows it.
const Namespace = "https://github.com/tabi-lisp/tabi/vm/1"

// WithMetadata returns a definition in which the metadata say this owner and these EIDs, whatever they said before; with
// neither, nothing. The rest of the definition stays as it is, byte for byte.
func WithMetadata(doc, owner string, eids []lisp.EID) (string, error) {
	if _, err := ParseDomain([]byte(doc)); err != nil && !isMetadataError(doc) {
		return "", err
	}
	s, err := locate([]byte(doc))
	if err != nil {
		return "", fmt.Errorf("libvirt: domain XML: %w", err)
	}
	if s.name == nil {
		return "", errors.New("libvirt: domain XML: no <name>")
	}
	element, err := metadata(owner, eids)
	if err != nil {
		return "", err
	}
	switch {
	case s.vm != nil:
		return doc[:s.vm.start] + element + doc[s.vm.end:], nil
	case element == "":
		return doc, nil
	case s.metadata != nil && s.metadata.inner == s.metadata.end: // <metadata/>
		return doc[:s.metadata.start] + "<metadata>" + element + "</metadata>" + doc[s.metadata.end:], nil
	case s.metadata != nil:
		return doc[:s.metadata.inner] + element + doc[s.metadata.inner:], nil
	}
	return doc[:s.name.end] + "\n  <metadata>" + element + "</metadata>" + doc[s.name.end:], nil
}

// isMetadataError reports whether a document is a domain whose metadata alone is wrong: that is what is replaced.
func isMetadataError(doc string) bool {
	g, err := ParseDomain([]byte(doc))
	return err != nil && g.Name != ""
}

// metadata is our element; "" if there is nothing to say.
func metadata(owner string, eids []lisp.EID) (string, error) {
	owner = strings.TrimSpace(owner)
	if owner == "" && len(eids) == 0 {
		return "", nil
	}
	var b strings.Builder
	b.WriteString(`<tabi:vm xmlns:tabi="` + Namespace + `">`)
	if owner != "" {
		if strings.ContainsFunc(owner, func(r rune) bool { return r < ' ' || r == utf8.RuneError || r == 0xfffe || r == 0xffff }) {
			return "", fmt.Errorf("libvirt: owner %q cannot be written in XML", owner)
		}
		b.WriteString("<tabi:owner>")
		if err := xml.EscapeText(&b, []byte(owner)); err != nil {
			return "", fmt.Errorf("libvirt: owner %q: %w", owner, err)
		}
		b.WriteString("</tabi:owner>")
	}
	for _, e := range eids {
		if !e.IsValid() {
			return "", fmt.Errorf("libvirt: metadata: %v is not an EID", e)
		}
		b.WriteString("<tabi:eid>" + e.String() + "</tabi:eid>")
	}
	b.WriteString("</tabi:vm>")
	return b.String(), nil
}
