package node

import (
	"errors"
	"io/fs"
	"syscall"
)

// ErrTooLarge is the cause when a file is larger than it may be.
var ErrTooLarge = errors.New("it is larger than it may be")

// Read gives the content of a file of at most limit bytes. It does without *os.File, which is made ready for polling and
// for a collector of garbage that a process of a few milliseconds never meets: a fifth of what the shim costs a call.
// Errors are *fs.PathError, as of os.ReadFile.
func Read(path string, limit int) ([]byte, error) {
	fd, err := ignoringInterrupts(func() (int, error) { return syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer syscall.Close(fd)
	data, err := ReadAll(fd, limit)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return data, nil
}

// ReadAll reads an open file of at most limit bytes to its end.
func ReadAll(fd, limit int) ([]byte, error) {
	data := make([]byte, 0, 1<<12)
	for {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		n, err := ignoringInterrupts(func() (int, error) { return syscall.Read(fd, data[len(data):cap(data)]) })
		switch {
		case err != nil:
			return nil, err
		case n == 0:
			return data, nil
		}
		if data = data[:len(data)+n]; len(data) > limit {
			return nil, ErrTooLarge
		}
	}
}

func ignoringInterrupts(call func() (int, error)) (int, error) {
	for {
		result, err := call()
		if !errors.Is(err, syscall.EINTR) {
			return result, err
		}
	}
}
