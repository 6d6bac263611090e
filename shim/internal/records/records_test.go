package records

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The examples that tests/unit/test_records.py reads too.
const examples = "../../../tests/unit/records"

func TestAnExampleIsAsValidAsItsNameSays(t *testing.T) {
	paths, _ := filepath.Glob(filepath.Join(examples, "*.json"))
	if len(paths) < 20 {
		t.Fatalf("only %d examples in %s", len(paths), examples)
	}
	for _, path := range paths {
		kind, rest, _ := strings.Cut(filepath.Base(path), ".")
		t.Run(strings.TrimSuffix(filepath.Base(path), ".json"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			switch kind {
			case "realise-request":
				_, err = Decode[Request](data)
			case "realise-answer":
				_, err = Decode[Answer](data)
			case "grant":
				_, err = Decode[Grant](data)
			case "pod-record":
				_, err = Decode[Pod](data)
			case "container-record":
				_, err = Decode[Container](data)
			case "notice":
				_, err = Decode[Notice](data)
			default:
				t.Skipf("%s is the Python side's alone", kind)
			}
			if valid := strings.HasPrefix(rest, "valid."); valid != (err == nil) {
				t.Fatalf("valid should be %v, and the error is %v", valid, err)
			}
		})
	}
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(examples, "pod-record.valid.plain.json"))
	if err != nil {
		t.Fatal(err)
	}
	record, err := Decode[Pod](data)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "not/yet/there/x.json")
	if err := Write(path, record); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v", info.Mode())
	}
	again, err := Read[Pod](path)
	if err != nil || again != record {
		t.Fatalf("%v, %+v", err, again)
	}
}

func TestAMissingRecordIsToldFromADamagedOne(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read[Pod](filepath.Join(dir, "none.json")); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	damaged := filepath.Join(dir, "damaged.json")
	if err := os.WriteFile(damaged, []byte(`{"schema_version": 1`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read[Pod](damaged); err == nil || os.IsNotExist(err) {
		t.Fatal(err)
	}
}
