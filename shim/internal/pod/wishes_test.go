package pod

import (
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// example is what flox_node/environments/annotations.py is held to as well (tests/unit/environments/test_annotations.py).
type example struct {
	Annotations Annotations `json:"annotations"`
	Reference   string      `json:"reference"`
	Mode        string      `json:"mode"`
	NixMutable  bool        `json:"nix_mutable"`
	Fault       string      `json:"fault"`
	Warnings    []string    `json:"warnings"`
	In          []string    `json:"in"`
	Skipped     []string    `json:"skipped"`
	ExecIn      []string    `json:"exec_in"`
	ExecSkipped []string    `json:"exec_skipped"`
}

func TestAnExampleIsJudgedAsItSays(t *testing.T) {
	files, _ := filepath.Glob("../../../tests/unit/records/annotations.*.json")
	if len(files) < 5 {
		t.Fatalf("only %d files of examples", len(files))
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var examples []example
		if err := json.Unmarshal(data, &examples); err != nil {
			t.Fatal(file, err)
		}
		for _, each := range examples {
			check(t, each, strings.Contains(file, ".valid."))
		}
	}
}

func check(t *testing.T, each example, valid bool) {
	t.Helper()
	wishes, err := each.Annotations.Wishes()
	switch {
	case valid != (err == nil):
		t.Errorf("%v: %v", each.Annotations, err)
	case err == nil && (each.Reference != "" && wishes.Reference.String() != each.Reference ||
		each.Mode != "" && wishes.Mode != each.Mode || wishes.NixMutable != each.NixMutable):
		t.Errorf("%v: %+v", each.Annotations, wishes)
	case err != nil && (!strings.Contains(err.Error(), each.Fault) || !printable(err.Error())):
		t.Errorf("%v: %v", each.Annotations, err)
	}
	warnings := each.Annotations.Warnings()
	if len(warnings) != len(each.Warnings) {
		t.Fatalf("%v: %q", each.Annotations, warnings)
	}
	for i, text := range each.Warnings {
		if !strings.Contains(warnings[i], text) || !printable(warnings[i]) {
			t.Errorf("%v: %q", each.Annotations, warnings)
		}
	}
	named := func(name string) Annotations {
		annotations := Annotations{containerName: name}
		for key, value := range each.Annotations {
			annotations[key] = value
		}
		return annotations
	}
	for _, name := range each.In {
		if named(name).Skipped() {
			t.Errorf("%v: %s is skipped", each.Annotations, name)
		}
	}
	for _, name := range each.Skipped {
		if !named(name).Skipped() {
			t.Errorf("%v: %s is not skipped", each.Annotations, name)
		}
	}
	for _, name := range each.ExecIn {
		if named(name).ExecSkipped() {
			t.Errorf("%v: an exec into %s is skipped", each.Annotations, name)
		}
	}
	for _, name := range each.ExecSkipped {
		if !named(name).ExecSkipped() {
			t.Errorf("%v: an exec into %s is not skipped", each.Annotations, name)
		}
	}
}

func printable(text string) bool {
	return len(text) < 700 && !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })
}

func TestAContainerWithoutANameIsOnNoList(t *testing.T) {
	if (Annotations{skipContainers: ",", skipContainersExec: "*"}).ExecSkipped() {
		t.Error("it is")
	}
}

func TestAReferenceIsWrittenAsItIsRead(t *testing.T) {
	for _, text := range []string{"demo/hello", "demo/hello:12"} {
		var reference Reference
		quoted := `"` + text + `"`
		if err := json.Unmarshal([]byte(quoted), &reference); err != nil || reference.Name() != "hello" {
			t.Fatal(err, reference)
		}
		if written, err := json.Marshal(reference); err != nil || string(written) != quoted {
			t.Errorf("%s, %v", written, err)
		}
	}
}

func FuzzAnnotations(f *testing.F) {
	for _, seed := range []string{"demo/hello", "demo/hello:3", "a/../b", "-x/y:1", "demo/hello@2", "*a*b?", "[x]"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		annotations := Annotations{
			environment: value, activateMode: value, onlyContainers: value, skipContainers: value, containerName: value,
			"flox.dev/" + value: value,
		}
		annotations.Skipped()
		for _, text := range annotations.Warnings() {
			if !printable(text) {
				t.Fatalf("%q", text)
			}
		}
		got, err := ParseReference(value)
		if err != nil {
			if _, err = (Annotations{environment: value}).Wishes(); !printable(err.Error()) {
				t.Fatalf("%q", err)
			}
			return
		}
		owner, name, _ := strings.Cut(got.Environment, "/")
		if path.Clean("/"+got.Environment) != "/"+got.Environment || owner == "" || name == "" ||
			strings.HasPrefix(owner, "-") || strings.HasPrefix(name, "-") || strings.Contains(name, "/") ||
			got.String() != value {
			t.Fatalf("%q gave %+v", value, got)
		}
	})
}
