package records

import (
	"path/filepath"
	"strings"
	"testing"
)

// Whatever is accepted as a record: no path that is built of it leaves its folder.
func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"schema_version":1,"container_id":"c","sandbox_id":"s","namespace":"n","pod":"p","name":"m","bundle":"/b",` +
		`"store_path":"/nix/store/0c1dfghijk2lmnpqrsvwxyz34567890a-x","environment_in_exec":true}`))
	f.Add([]byte(`{"schema_version":1,"container_id":"../c","bundle":"../b"}`))
	f.Add([]byte(`{"schema_version":1,"ok":true,"resolution":{"store_path":"/nix/store/../etc"}}`))
	f.Add([]byte(`[]`))
	inside := func(t *testing.T, path, folder string) {
		t.Helper()
		if filepath.Dir(filepath.Clean(path)) != folder || strings.ContainsAny(path, "\x00\n") {
			t.Fatalf("%q leaves %s", path, folder)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if container, err := Decode[Container](data); err == nil {
			inside(t, "/run/"+container.ContainerID, "/run")
			inside(t, "/run/"+container.SandboxID, "/run")
			inside(t, container.StorePath, "/nix/store")
		}
		if pod, err := Decode[Pod](data); err == nil {
			inside(t, "/run/"+pod.SandboxID, "/run")
			inside(t, pod.Resolution.StorePath, "/nix/store")
		}
		if answer, err := Decode[Answer](data); err == nil && answer.Resolution != nil && *answer.OK {
			inside(t, answer.Resolution.StorePath, "/nix/store")
		}
	})
}
