package report

import (
	"bytes"
	"os"
	"syscall"
	"time"
)

// A writer that is stopped while it holds the log costs the others this long, and never their container.
const patience = 50 * time.Millisecond

// appendEvent appends one line to a log that others append to at the same time, the Python side among them: each takes
// the file's lock, so that a line is there as a whole or not at all, also when the disk is full, and one of them rotates.
// One older file is kept, so the log takes at most twice its limit.
func appendEvent(path string, line []byte, limit int64) error {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o640)
		if err != nil {
			return err
		}
		again, err := appendLocked(file, path, line, limit)
		_ = file.Close()
		if !again {
			return err
		}
	}
}

// appendLocked says to try again when the file at the path is another one by now.
func appendLocked(file *os.File, path string, line []byte, limit int64) (again bool, err error) {
	alone := lock(file)
	var here, there syscall.Stat_t
	if err := syscall.Fstat(int(file.Fd()), &here); err != nil {
		return false, err
	}
	if here.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return false, syscall.EINVAL
	}
	if err := syscall.Lstat(path, &there); err != nil || here.Ino != there.Ino || here.Dev != there.Dev {
		return alone, err // somebody rotated; without the lock this is as good a place as any
	}
	if here.Size > limit && alone {
		return os.Rename(path, path+".1") == nil, nil
	}
	var last [1]byte
	if here.Size > 0 {
		if _, err := file.ReadAt(last[:], here.Size-1); err == nil && last[0] != '\n' {
			line = append([]byte{'\n'}, line...) // half a line of somebody who was cut off stays alone
		}
	}
	line = append(bytes.Clone(line), '\n')
	written, err := file.Write(line)
	if written < len(line) && alone {
		_ = file.Truncate(here.Size)
	}
	return false, err
}

func lock(file *os.File) bool {
	for until := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			return true
		}
		if time.Now().After(until) {
			return false
		}
	}
}
