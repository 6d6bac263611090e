package pod

import (
	"path"
	"strings"
	"testing"
)

func TestEnvironmentTakesOwnerNameAndGeneration(t *testing.T) {
	cases := map[string]Environment{
		"demo/hello":      {"demo/hello", 0},
		"demo/hello:1":    {"demo/hello", 1},
		"a/b:2147483647":  {"a/b", 2147483647},
		"0a.B_c-d/x..y-_": {"0a.B_c-d/x..y-_", 0},
	}
	for value, wanted := range cases {
		got, err := Annotations{environment: value}.Environment()
		if err != nil || got != wanted {
			t.Errorf("%q: %+v, %v", value, got, err)
		}
	}
}

func TestAWrongEnvironmentIsRefusedWithTheRightForm(t *testing.T) {
	long := strings.Repeat("x", maxPart+1)
	for _, value := range []string{
		"hello", "/hello", "demo/", "demo/hello/x", "demo//hello", "../hello", "demo/..", "demo/.hello", "-f/hello", "demo/-g",
		"demo/hello:", "demo/hello:0", "demo/hello:01", "demo/hello:+1", "demo/hello:-1", "demo/hello:1:2", "demo/hello:x",
		"demo/hello:99999999999999999999", "demo/hello@2", "demo/hello:@2", "demo/hello ", " demo/hello", "demo/hello\n",
		"demo/h\x00llo", "démo/hello", "https://hub.flox.dev/demo/hello", long + "/x", "x/" + long,
	} {
		_, err := Annotations{environment: value}.Environment()
		if err == nil {
			t.Errorf("%q was accepted", value)
			continue
		}
		if text := err.Error(); !strings.Contains(text, "owner/name:3") || strings.ContainsAny(text, "\n\x00") || len(text) > 600 {
			t.Errorf("%q: %s", value, text)
		}
	}
}

func TestAMissingEnvironmentNamesTheAnnotationAndAnExample(t *testing.T) {
	_, err := Annotations{}.Environment()
	if err == nil || !strings.Contains(err.Error(), "flox.dev/environment: owner/name") {
		t.Fatal(err)
	}
}

func TestModeIsRunUnlessThePodSaysDev(t *testing.T) {
	for value, wanted := range map[string]string{"": "run", "run": "run", "dev": "dev", "Run": "", "run ": "", "build": ""} {
		mode, err := Annotations{activateMode: value}.Mode()
		if mode != wanted || (err == nil) != (wanted != "") {
			t.Errorf("%q: %q, %v", value, mode, err)
		}
	}
}

func TestASkipListNamesContainersAndIgnoresOthers(t *testing.T) {
	for list, skipped := range map[string]bool{
		"": false, "main": true, "init-permissions, main": true, "helper,nope": false, "mai": false, "main2": false, ",": false, " main ,": true,
	} {
		annotations := Annotations{skipContainers: list, skipContainersExec: list, containerName: "main"}
		if annotations.Skipped() != skipped || annotations.ExecSkipped() != skipped {
			t.Errorf("%q", list)
		}
	}
	if (Annotations{skipContainers: ","}).Skipped() {
		t.Error("a container without a name is on no list")
	}
}

func TestASandboxIDIsSafeAsAFileName(t *testing.T) {
	for _, id := range []string{"", ".", "..", "a/b", "../x", "-x", "a\x00", strings.Repeat("a", 257), "a b"} {
		if _, err := (Annotations{sandboxID: id}).Pod(); err == nil {
			t.Errorf("%q was accepted", id)
		}
	}
	if pod, err := (Annotations{sandboxID: "5f3c", sandboxNS: "n"}).Pod(); err != nil || pod.Namespace != "n" {
		t.Error(err)
	}
}

func FuzzEnvironment(f *testing.F) {
	for _, seed := range []string{"demo/hello", "demo/hello:3", "a/../b", "-x/y:1", "demo/hello@2"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got, err := Annotations{environment: value}.Environment()
		if err != nil {
			if len(err.Error()) > 1024 || strings.Contains(err.Error(), "\n") {
				t.Fatalf("%q", err)
			}
			return
		}
		owner, name, _ := strings.Cut(got.Name, "/")
		if path.Clean("/"+got.Name) != "/"+got.Name || owner == "" || name == "" || strings.HasPrefix(owner, "-") ||
			strings.HasPrefix(name, "-") || strings.Contains(name, "/") || got.Generation < 0 {
			t.Fatalf("%q gave %+v", value, got)
		}
	})
}
