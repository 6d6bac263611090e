// Command platforms stands in for what renders containerd's configuration on some platforms: nodeadm, k3s, RKE2 and k0s.
// It does what they do to the configuration, with the same libraries, and starts containerd where they are its parent.
// Its name says which of them it is.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	programs := map[string]func([]string) error{"nodeadm": nodeadm, "k3s": rancher, "rke2": rancher, "k0s": k0s}
	name := filepath.Base(os.Args[0])
	program, known := programs[name]
	if !known {
		fmt.Fprintln(os.Stderr, "unknown name:", name)
		os.Exit(2)
	}
	if err := program(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// supervise runs containerd, and whatever else is given, as children until one of them ends or a signal comes.
// containerd itself tells systemd when it is ready (NotifyAccess=all).
func supervise(commands ...[]string) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	ended := make(chan error, len(commands))
	var children []*exec.Cmd
	for _, argv := range commands {
		child := exec.Command(argv[0], argv[1:]...)
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if err := child.Start(); err != nil {
			return err
		}
		children = append(children, child)
		go func() { ended <- fmt.Errorf("%s ended: %w", argv[0], errors.Join(child.Wait())) }()
	}
	var result error
	waiting := len(children)
	select {
	case <-stop:
	case result = <-ended:
		waiting--
	}
	for _, child := range children {
		_ = child.Process.Signal(syscall.SIGTERM)
	}
	for ; waiting > 0; waiting-- {
		<-ended
	}
	return result
}

// major is the first number of the version that a containerd prints: "containerd github.com/... v2.1.9 ...".
func major(containerd string) (string, error) {
	text, err := exec.Command(containerd, "--version").Output()
	if err != nil {
		return "", err
	}
	words := strings.Fields(string(text))
	if len(words) < 3 {
		return "", fmt.Errorf("no version in %q", text)
	}
	return strings.TrimPrefix(words[2], "v")[:1], nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
