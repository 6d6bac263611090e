// Command greeter answers every request with a greeting; with -check it prints one and ends.
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"strings"
)

func greeting(path string) string {
	name := strings.Trim(path, "/")
	if name == "" {
		name = "world"
	}
	return fmt.Sprintf("Hello, %s!\n", name)
}

func main() {
	check := flag.Bool("check", false, "print a greeting and end")
	if flag.Parse(); *check {
		fmt.Print(greeting("/"))
		return
	}
	http.HandleFunc("/", func(answer http.ResponseWriter, request *http.Request) {
		fmt.Fprint(answer, greeting(request.URL.Path))
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}
