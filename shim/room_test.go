package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flox.dev/flox-node/shim/internal/spec"
)

func TestWhatLiesWhereTheEnvironmentGoesIsRefused(t *testing.T) {
	volume := t.TempDir()
	for target, name := range map[string]string{"/nix": "to-nix", "/.flox-node/cache": "to-state", "/": "to-root"} {
		if err := os.Symlink(target, filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	shared := []string{"rbind", "rshared"}
	for name, test := range map[string]struct {
		image  map[string]string // symlinks; an empty target is a file
		mounts []spec.Mount
		text   string // of the refusal; empty: it is accepted
	}{
		"nothing":                {},
		"the store":              {mounts: []spec.Mount{{Destination: "/nix/store"}}, text: `a volume at "/nix/store", and /nix is`},
		"with dots":              {mounts: []spec.Mount{{Destination: "/srv/../nix//"}}, text: `"/srv/../nix//", and /nix is`},
		"our state":              {mounts: []spec.Mount{{Destination: "/.flox-node/cache"}}, text: "/.flox-node is the environment's"},
		"names that begin alike": {mounts: []spec.Mount{{Destination: "/nixx"}, {Destination: "/.flox-node2"}, {Destination: "/.flox"}}},
		"the root":               {mounts: []spec.Mount{{Destination: "/"}}, text: "the environment's /nix would lie in it"},
		"the shared root":        {mounts: []spec.Mount{{Destination: "/", Type: "bind", Options: shared}}, text: "would lie in it"},
		"a shared run":           {mounts: []spec.Mount{{Destination: "/run", Type: "bind", Source: volume, Options: shared}}},
		"a read-only run":        {mounts: []spec.Mount{{Destination: "/run", Type: "bind", Source: volume, Options: []string{"ro"}}}},
		"through the image":      {image: map[string]string{"data": "nix"}, mounts: []spec.Mount{{Destination: "/data/x"}}, text: `"/data/x", which is /nix/x`},
		"through the image's /run": {
			image: map[string]string{"run": "/.flox-node"}, mounts: []spec.Mount{{Destination: "/run/x"}}, text: "/.flox-node/x",
		},
		"the image's root": {image: map[string]string{"all": "/"}, mounts: []spec.Mount{{Destination: "/all"}}, text: "which is /"},
		"through a volume": {
			mounts: []spec.Mount{{Destination: "/v", Type: "bind", Source: volume}, {Destination: "/v/to-nix/store"}},
			text:   "which is /nix/store",
		},
		"through a volume, by option": {
			mounts: []spec.Mount{{Destination: "/v", Source: volume, Options: shared}, {Destination: "/v/to-state"}},
			text:   "which is /.flox-node/cache",
		},
		"below what hides a volume": {mounts: []spec.Mount{
			{Destination: "/v", Type: "bind", Source: volume}, {Destination: "/v", Type: "tmpfs"}, {Destination: "/v/to-nix"},
		}},
		"a loop":           {image: map[string]string{"loop": "loop"}, mounts: []spec.Mount{{Destination: "/loop"}}, text: "too many symlinks"},
		"a file of ours":   {image: map[string]string{".flox-node": ""}, text: "the image has something at /.flox-node"},
		"a link of ours":   {image: map[string]string{".flox-node": "/etc"}, text: "the image has something at /.flox-node"},
		"a file as /run":   {image: map[string]string{"run": ""}},
		"a link as /nix":   {image: map[string]string{"nix": "/etc"}, text: "the image's /nix cannot be used"},
		"/run to the host": {image: map[string]string{"run": "../../../tmp"}, mounts: []spec.Mount{{Destination: "/run"}}},
	} {
		root := t.TempDir()
		for link, target := range test.image {
			var err error
			if target == "" {
				err = os.WriteFile(filepath.Join(root, link), nil, 0o644)
			} else {
				err = os.Symlink(target, filepath.Join(root, link))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		_, _, err := makeRoom(root, root, test.mounts)
		if (err == nil) != (test.text == "") || err != nil && !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
