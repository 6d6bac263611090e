package pod

import (
	"strings"
	"testing"
)

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
