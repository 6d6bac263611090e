package report

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"flox.dev/flox-node/shim/internal/node"
)

func TestAnErrorIsTheLastLineOfALogThatExistsAlready(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log.json")
	if err := os.WriteFile(log, []byte("{\"level\":\"error\",\"msg\":\"stale\"}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	Fail(log, "json", "an \"odd\"\ntext \x1b[31m")
	data, _ := os.ReadFile(log)
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	var last struct{ Level, Msg, Time string }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || len(lines) != 2 {
		t.Fatalf("%v in %q", err, data)
	}
	if _, err := time.Parse(time.RFC3339, last.Time); err != nil || last.Level != "error" || last.Msg != "flox: an \"odd\" text  [31m" {
		t.Fatalf("%+v", last)
	}
}

func TestATextForAnEventIsOneShortLine(t *testing.T) {
	for _, text := range []string{"", "a\r\nb\x00c\u2028d", strings.Repeat("é", 2000), "\xff\xfe", strings.Repeat("\xf0\x9f\x98\x80", 500)} {
		got := OneLine(text)
		if len(got) > maxMessage || !utf8.ValidString(got) || strings.ContainsAny(got, "\r\n\x00\u2028") {
			t.Errorf("%q", got)
		}
	}
}

func TestTheNodesLogIsRotated(t *testing.T) {
	node.SetPrefix(t.TempDir())
	defer node.SetPrefix("")
	path := node.EventFile()
	Log(Event{Level: "info", Event: "sandbox"}) // makes the folder
	if err := os.WriteFile(path, make([]byte, maxEventFile+1), 0o640); err != nil {
		t.Fatal(err)
	}
	Log(Event{Level: "info", Event: "sandbox", Pod: "<web>"})
	data, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(data), `"pod":"<web>"`) || strings.Count(string(data), "\n") != 1 {
		t.Fatalf("%q, %v", data, err)
	}
	if info, err := os.Stat(path + ".1"); err != nil || info.Size() != maxEventFile+1 {
		t.Fatal(err)
	}
}
