// Command kubelet stands in for the kubelet on a node of the test bed: a process of that name, bound to containerd by its
// unit, that names the CRI socket in its arguments, needs it to start, and does nothing with it.
package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kubelet:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	const flag = "--container-runtime-endpoint=unix://"
	for _, arg := range args {
		if socket, found := strings.CutPrefix(arg, flag); found {
			connection, err := net.Dial("unix", socket)
			if err != nil {
				return fmt.Errorf("the container runtime does not answer: %w", err)
			}
			connection.Close()
			stop := make(chan os.Signal, 1)
			signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
			<-stop
			return nil
		}
	}
	return fmt.Errorf("no %sPATH given", flag)
}
