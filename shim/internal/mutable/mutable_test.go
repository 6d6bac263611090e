package mutable

import (
	"slices"
	"strings"
	"testing"
)

const (
	flox  = "/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-flox"
	nix   = "/nix/store/bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-nix"
	glibc = "/nix/store/cccccccccccccccccccccccccccccccc-glibc"
)

func TestTheCLIsClosureIsThatOfThePayloadsManifest(t *testing.T) {
	tools, err := readTools([]byte(`{"entry_points": {"flox": "` + flox + `/bin/flox", "nix-store": "` + nix + `/bin/nix-store"},
		"store_paths": [{"path": "` + flox + `", "references": ["` + glibc + `", "` + flox + `"]},
		{"path": "` + nix + `", "references": ["` + glibc + `"]}, {"path": "` + glibc + `", "references": ["` + glibc + `"]},
		{"path": "/nix/store/dddddddddddddddddddddddddddddddd-flox-node", "references": []}]}`))
	var wanted []string
	for _, each := range []string{flox, nix, glibc} {
		wanted = append(wanted, strings.TrimPrefix(each, "/nix/store/"))
	}
	if err != nil || tools.CLI != flox+"/bin" || !slices.Equal(tools.Closure, wanted) {
		t.Fatalf("%+v, %v", tools, err)
	}
}

func TestADamagedManifestIsAnError(t *testing.T) {
	for _, manifest := range []string{
		``, `[]`, `{}`, `{"entry_points": {"flox": "/etc/passwd"}}`, `{"entry_points": {"flox": "` + flox + `/bin/flox"}}`,
		`{"entry_points": {"flox": "` + flox + `/bin/flox", "nix-store": "` + nix + `/bin/nix-store"},
		"store_paths": [{"path": "` + flox + `", "references": ["/nix/store/../../etc"]}]}`,
	} {
		if tools, err := readTools([]byte(manifest)); err == nil {
			t.Errorf("%s gave %+v", manifest, tools)
		}
	}
}
