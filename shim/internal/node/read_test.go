package node

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestAFileIsReadWholeOrNotAtAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, size := range []int{0, 1, 4095, 4096, 4097, 100_000} {
		content := bytes.Repeat([]byte("x"), size)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if data, err := Read(path, size); err != nil || !bytes.Equal(data, content) {
			t.Errorf("%d bytes: %d, %v", size, len(data), err)
		}
		if size > 0 {
			if data, err := Read(path, size-1); data != nil || !errors.Is(err, ErrTooLarge) {
				t.Errorf("%d bytes, one too many: %d, %v", size, len(data), err)
			}
		}
	}
	if _, err := Read(path+"x", 1); !os.IsNotExist(err) {
		t.Error(err)
	}
	if _, err := Read(filepath.Dir(path), 1); err == nil {
		t.Error("a folder is no file")
	}
}
