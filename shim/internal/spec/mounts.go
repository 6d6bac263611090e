package spec

import (
	"fmt"
	"os"
)

// Bind shows a file or folder of the host, read-only and with nothing in it that gives rights.
func Bind(source, destination string) Mount {
	return Mount{
		Destination: destination, Type: "bind", Source: source,
		Options: []string{"rbind", "rprivate", "ro", "nosuid", "nodev"},
	}
}

// Tmpfs is a folder in memory for a user of the container.
func Tmpfs(destination, size string, owner User, mode os.FileMode) Mount {
	bits := uint32(mode.Perm())
	if mode&os.ModeSticky != 0 {
		bits |= 0o1000
	}
	options := []string{"nosuid", "nodev", fmt.Sprintf("mode=%o", bits), "size=" + size}
	if owner != (User{}) {
		options = append(options, fmt.Sprintf("uid=%d", owner.UID), fmt.Sprintf("gid=%d", owner.GID))
	}
	return Mount{Destination: destination, Type: "tmpfs", Source: "tmpfs", Options: options}
}
