package spec

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const example = `{"ociVersion":"1.0.2","later":{"n":9007199254740993,"f":1.50,"t":"<&>"},
 "process":{"args":["sh"],"env":["A=1"],"rlimits":[{"hard":18446744073709551615}]},
 "root":{"path":"rootfs","readonly":true},
 "mounts":[{"destination":"/proc","type":"proc","later":[1]}],
 "annotations":{"a":"b"}}`

func write(t *testing.T, content string, mode os.FileMode) string {
	t.Helper()
	bundle := t.TempDir()
	file := filepath.Join(bundle, "config.json")
	if err := os.WriteFile(file, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return bundle
}

func TestAnEditKeepsEveryFieldAndNumberThatItDoesNotTouch(t *testing.T) {
	bundle := write(t, example, 0o640)
	config, err := ReadConfig(bundle)
	if err != nil {
		t.Fatal(err)
	}
	if config.Root != "rootfs" || config.Annotations["a"] != "b" || config.Process.Args[0] != "sh" {
		t.Fatalf("%+v", config)
	}
	config.Process.Args = []string{"other"}
	if err := config.AddMount(Mount{Destination: "/nix", Type: "bind"}); err != nil {
		t.Fatal(err)
	}
	if err := config.Write(); err != nil {
		t.Fatal(err)
	}
	data, _ := os.ReadFile(filepath.Join(bundle, "config.json"))
	for _, text := range []string{
		`"later":{"n":9007199254740993,"f":1.50,"t":"<&>"}`, `"hard":18446744073709551615`, `"later":[1]`,
		`"args":["other"]`, `{"destination":"/nix","type":"bind"}`, `"readonly":true`,
	} {
		if !bytes.Contains(data, []byte(text)) {
			t.Errorf("%s is not in %s", text, data)
		}
	}
	if info, _ := os.Stat(filepath.Join(bundle, "config.json")); info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", info.Mode())
	}
	if entries, _ := os.ReadDir(bundle); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestAConfigurationThatIsNoneIsAnError(t *testing.T) {
	for _, content := range []string{
		``, `[]`, `{`, `null`, `{"process":[]}`, `{"process":{"args":"sh"}}`, `{"mounts":{}}`, `{"annotations":[1]}`, `{}`,
		`{"process":null}`, `{"process":{"env":[1]}}`, `{"process":{},"mounts":[1]}`, `{"process":{},"root":"x"}`,
	} {
		if _, err := ReadConfig(write(t, content, 0o644)); err == nil {
			t.Errorf("%s was accepted", content)
		}
	}
}

func TestASymlinkOrADeviceIsNotRead(t *testing.T) {
	bundle := t.TempDir()
	if err := os.Symlink("/dev/zero", filepath.Join(bundle, "config.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadConfig(bundle); err == nil {
		t.Fatal("a symlink was followed")
	}
}

func TestAProcessFileIsRewrittenInItsPlace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "process")
	long := `{"args":["a"],"env":["LONG=` + string(bytes.Repeat([]byte("x"), 4096)) + `"],"user":{"uid":1}}`
	if err := os.WriteFile(file, []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	before, _ := os.Stat(file)
	if err := RewriteProcess(file, func(p *Process) { p.Env = []string{"SHORT=<1>"} }); err != nil {
		t.Fatal(err)
	}
	data, _ := os.ReadFile(file)
	if string(data) != `{"args":["a"],"env":["SHORT=<1>"],"user":{"uid":1}}` {
		t.Fatalf("%s", data)
	}
	if after, _ := os.Stat(file); !os.SameFile(before, after) || after.Mode() != before.Mode() {
		t.Fatal("another file")
	}
}

func TestABindIsKnownByTypeOrOption(t *testing.T) {
	for bind, mount := range map[bool]Mount{
		true: {Type: "bind"}, false: {Type: "tmpfs", Options: []string{"nosuid", "mode=755"}},
	} {
		if mount.Bind() != bind {
			t.Errorf("%+v", mount)
		}
	}
	for _, option := range []string{"bind", "rbind"} {
		if !(Mount{Type: "none", Options: []string{"ro", option}}).Bind() {
			t.Error(option)
		}
	}
}

// Whatever configuration is accepted: an edit changes the edited fields and nothing else.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte(`{"process":{},"mounts":null,"annotations":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var config Config
		if config.decode(data) != nil {
			return
		}
		args := append([]string{"flox"}, config.Process.Args...)
		config.Process.Args = args
		if err := config.AddMount(Mount{Destination: "/nix"}); err != nil {
			t.Fatal(err)
		}
		encoded, err := config.encode()
		if err != nil {
			t.Fatal(err)
		}
		var before, after map[string]json.RawMessage
		if json.Unmarshal(data, &before) != nil || json.Unmarshal(encoded, &after) != nil {
			t.Fatalf("%s", encoded)
		}
		for name, value := range before {
			if name == "process" || name == "mounts" {
				continue
			}
			var compact bytes.Buffer
			if err := json.Compact(&compact, value); err != nil || !bytes.Equal(compact.Bytes(), after[name]) {
				t.Fatalf("%s was %s and is %s", name, value, after[name])
			}
		}
		var again Config
		if err := again.decode(encoded); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(again.Mounts, config.Mounts) || len(again.Process.Args) != len(args) {
			t.Fatalf("%+v became %+v", config, again)
		}
	})
}

func TestAHookIsAddedToThoseThatAreThere(t *testing.T) {
	for _, hooks := range []string{``, `,"hooks":null`, `,"hooks":{}`, `,"hooks":{"prestart":[{"path":"/p"}],"createRuntime":[{"path":"/c","x":1}]}`} {
		config := &Config{}
		if err := config.decode([]byte(`{"process":{"args":["x"]},"linux":{"mountLabel":"a:b"}` + hooks + `}`)); err != nil {
			t.Fatal(err)
		}
		if err := config.AddHook(Hook{Path: "/ours", Args: []string{"ours", ""}, Timeout: 3}); err != nil {
			t.Fatal(err)
		}
		data, err := config.encode()
		if err != nil {
			t.Fatal(err)
		}
		const ours = `{"path":"/ours","args":["ours",""],"timeout":3}]`
		if config.MountLabel != "a:b" || !strings.Contains(string(data), ours) {
			t.Errorf("%s", data)
		}
		if strings.Contains(hooks, "prestart") && !strings.Contains(string(data), `"createRuntime":[{"path":"/c","x":1},`+ours) {
			t.Errorf("%s", data)
		}
	}
	config := &Config{}
	if err := config.decode([]byte(`{"process":{},"hooks":[]}`)); err != nil {
		t.Fatal(err)
	}
	if config.AddHook(Hook{}) == nil {
		t.Error("hooks that are no object")
	}
}
