package spec

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// Whatever process file is accepted: an edit of the environment changes that and nothing else; one that is refused stays
// the bytes that it was.
func FuzzProcess(f *testing.F) {
	f.Add([]byte(`{"args":["a","\u2028<&>"],"env":["A=1"],"cwd":"/","later":9007199254740993}`))
	f.Add([]byte(`{"env":null,"args":[],"user":{"uid":0}}`))
	f.Add([]byte(`{"env":[1]}`))
	f.Add([]byte(`null`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, data []byte) {
		name := filepath.Join(t.TempDir(), "process")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		edited := false
		err := RewriteProcess(name, func(process *Process) {
			edited = true
			process.Env = append(process.Env, "FLOX_ENV=/env")
		})
		after, readErr := os.ReadFile(name)
		if readErr != nil {
			t.Fatal(readErr)
		}
		if err != nil {
			if edited || string(after) != string(data) {
				t.Fatalf("%v, and the file is %q", err, after)
			}
			return
		}
		var was, is map[string]json.RawMessage
		if json.Unmarshal(data, &was) != nil || json.Unmarshal(after, &is) != nil {
			t.Fatalf("%q became %q", data, after)
		}
		for _, name := range []string{"args", "env"} {
			delete(was, name)
			delete(is, name)
		}
		for name := range was {
			var one, two any
			if json.Unmarshal(was[name], &one) != nil || json.Unmarshal(is[name], &two) != nil || !reflect.DeepEqual(one, two) {
				t.Fatalf("%s: %s became %s", name, was[name], is[name])
			}
		}
	})
}
