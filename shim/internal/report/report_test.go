package report

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
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
	if err := os.WriteFile(path, append(make([]byte, maxEventFile), '\n'), 0o640); err != nil {
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

func TestHalfALineStaysAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(`{"half":`), 0o640); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"one", "two"} {
		if err := appendEvent(path, []byte(line), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if data, _ := os.ReadFile(path); string(data) != "{\"half\":\none\ntwo\n" {
		t.Fatalf("%q", data)
	}
}

func TestALineIsThereAsAWholeOrNotAtAllOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatalf("a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "log")
	line := []byte(strings.Repeat("x", 999))
	var err error
	for written := 0; err == nil && written < 100; written++ {
		err = appendEvent(path, line, 1<<20)
	}
	data, _ := os.ReadFile(path)
	if err == nil || len(data) == 0 || len(data)%1000 != 0 {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	if os.Truncate(path, 2000) != nil || appendEvent(path, line, 1<<20) != nil {
		t.Fatal("it goes on when there is room")
	}
}

func TestNoLineIsLostWhenManyWriteThroughARotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	const writers, each = 8, 40
	var group sync.WaitGroup
	for writer := range writers {
		group.Add(1)
		go func() {
			defer group.Done()
			for number := range each {
				if err := appendEvent(path, fmt.Appendf(nil, "%d-%d", writer, number), 1000); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	group.Wait()
	older, _ := os.ReadFile(path + ".1")
	newer, _ := os.ReadFile(path)
	if len(older) <= 1000 || len(older) > 1100 {
		t.Errorf("the older file has %d bytes", len(older))
	}
	for _, line := range strings.Split(strings.TrimSuffix(string(older)+string(newer), "\n"), "\n") {
		var writer, number int
		if _, err := fmt.Sscanf(line, "%d-%d", &writer, &number); err != nil {
			t.Errorf("%q", line)
		}
	}
}
