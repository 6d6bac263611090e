// Package launch is what a container runs between the activation of its environment and its command: this program again,
// mounted into the container. It keeps the variables that the activation made, for commands that are executed later, and
// becomes the command. So it does not matter what the command does to its own memory, nor when somebody looks first.
//
// It runs as the container's user and can nothing that the container cannot; what it leaves is the tenant's text.
package launch

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"flox.dev/flox-node/shim/internal/activation"
)

// The exit statuses of shells, env(1) and Docker.
const (
	notExecutable = 126
	notFound      = 127
)

// Called says that this program was started as the launcher and not as a runtime.
func Called(args []string) bool { return len(args) > 0 && args[0] == activation.Launcher }

// Main keeps the environment and becomes argv; it returns an exit status when that failed.
func Main(argv []string) int {
	env := activation.Restore(os.Environ())
	if err := keep(activation.RuntimeDir, env); err != nil {
		say("the environment cannot be kept for commands that are executed in this container: " + err.Error())
	}
	status, text := become(argv, env)
	say(text)
	return status
}

func say(text string) { _, _ = os.Stderr.WriteString("flox: " + text + "\n") }

// keep writes the variables to a file in a folder that every user of the container can write to. The old name is
// replaced and never opened. As in node.Read, *os.File would cost more than the file does.
func keep(folder string, env []string) error {
	path := filepath.Join(folder, activation.KeptEnvironment)
	temporary := path + ".new"
	_ = syscall.Unlink(temporary)
	const flags = syscall.O_WRONLY | syscall.O_CREAT | syscall.O_EXCL | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
	fd, err := syscall.Open(temporary, flags, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: temporary, Err: err}
	}
	for data := []byte(strings.Join(env, "\x00")); err == nil && len(data) > 0; {
		var n int
		if n, err = syscall.Write(fd, data); err == nil {
			data = data[n:]
		}
	}
	if err == nil {
		err = syscall.Fchmod(fd, 0o600) // whatever the umask is
	}
	if closed := syscall.Close(fd); err == nil {
		err = closed
	}
	if err == nil {
		err = syscall.Rename(temporary, path)
	}
	if err != nil {
		_ = syscall.Unlink(temporary)
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// become replaces this process with the command, which is searched as execvp(3) does. It returns when it failed.
func become(argv, env []string) (status int, text string) {
	if len(argv) == 0 {
		return notFound, "there is no command"
	}
	name := argv[0]
	var err error
	if strings.Contains(name, "/") {
		err = execute(name, argv, env)
	} else {
		err = search(name, argv, env)
	}
	switch {
	case !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENOTDIR):
		return notExecutable, name + ": cannot be executed: " + err.Error()
	case strings.Contains(name, "/") && exists(name):
		return notFound, name + ": the interpreter or loader that it names was not found"
	case strings.Contains(name, "/"):
		return notFound, name + ": no such file"
	}
	return notFound, name + ": command not found in PATH"
}

func search(name string, argv, env []string) error {
	denied := error(syscall.ENOENT)
	if name == "" {
		return denied
	}
	for _, folder := range filepath.SplitList(activation.Get(env, "PATH", "/usr/local/bin:/usr/bin:/bin")) {
		if folder == "" {
			folder = "."
		}
		err := execute(folder+"/"+name, argv, env)
		switch {
		case errors.Is(err, syscall.EACCES):
			denied = err
		case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ESTALE),
			errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG):
		default:
			return err
		}
	}
	return denied
}

// execute gives a script without a first line that names its interpreter to the shell, as execvp(3) does.
func execute(path string, argv, env []string) error {
	err := syscall.Exec(path, argv, env)
	if errors.Is(err, syscall.ENOEXEC) {
		shell := append([]string{"/bin/sh", path}, argv[1:]...)
		if syscall.Exec(shell[0], shell, env) != nil {
			return err
		}
	}
	return err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
