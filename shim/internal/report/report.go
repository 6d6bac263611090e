// Package report tells what happened: to containerd in the form of runc's log, and to the node's log of the handler.
package report

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"flox.dev/flox-node/shim/internal/node"
)

const (
	maxMessage   = 1024
	maxEventFile = 8 << 20
)

// Fail writes the error where containerd's shim looks for it: the last error line of --log, and stderr.
//
// The line is appended even when the runtime's log exists already: execs share the log of their container, and without
// a line of its own a failed exec would be shown with an older error.
func Fail(logPath, logFormat, message string) {
	message = OneLine("flox: " + message)
	now := time.Now().UTC().Format(time.RFC3339)
	var line []byte
	if logFormat == "json" {
		line = marshal(struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
			Time  string `json:"time"`
		}{"error", message, now})
	} else {
		line = []byte("time=" + strconv.Quote(now) + " level=error msg=" + strconv.Quote(message))
	}
	if logPath != "" {
		appendLine(logPath, line, 0o644)
	}
	_, _ = os.Stderr.WriteString(message + "\n")
}

// Event is one line of the node's log. It never holds a token or the value of an environment variable.
type Event struct {
	Time        string `json:"time"`
	Level       string `json:"level"`
	Event       string `json:"event"`
	Namespace   string `json:"namespace,omitempty"`
	Pod         string `json:"pod,omitempty"`
	Sandbox     string `json:"sandbox,omitempty"`
	Container   string `json:"container,omitempty"`
	Environment string `json:"environment,omitempty"`
	Generation  int    `json:"generation,omitempty"`
	StorePath   string `json:"store_path,omitempty"`
	Millis      int64  `json:"ms,omitempty"`
	Message     string `json:"message,omitempty"`
}

// Log appends an event to the node's log, as well as it can: a full disk stops no container.
func Log(event Event) {
	event.Time = time.Now().UTC().Format(time.RFC3339Nano)
	event.Message = OneLine(event.Message)
	path := node.EventFile()
	_ = os.MkdirAll(filepath.Dir(path), 0o755)
	_ = appendEvent(path, marshal(event), maxEventFile)
}

// WithoutTokens takes out of a line of foreign origin what looks like a token of FloxHub.
func WithoutTokens(line string) string {
	words := strings.Fields(line)
	for i, word := range words {
		if strings.Contains(word, "flox_") || strings.Contains(word, "eyJ") {
			words[i] = "(removed)"
		}
	}
	return strings.Join(words, " ")
}

// OneLine makes a text of foreign origin fit for an event of a pod: one line, valid UTF-8, at most 1 KiB.
func OneLine(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool {
		return r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029'
	}), " ")
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= maxMessage {
		return text
	}
	cut := maxMessage - len("...")
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "..."
}

func marshal(value any) []byte {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if encoder.Encode(value) != nil {
		return nil
	}
	return bytes.TrimRight(buffer.Bytes(), "\n")
}

// appendLine writes the line with one call, so that lines of several processes never mix.
func appendLine(path string, line []byte, mode os.FileMode) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, mode)
	if err != nil {
		return
	}
	_, _ = file.Write(append(line, '\n'))
	_ = file.Close()
}
