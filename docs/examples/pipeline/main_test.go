package main

import "testing"

func TestGreeting(t *testing.T) {
	for path, want := range map[string]string{"/": "Hello, world!\n", "/you": "Hello, you!\n"} {
		if got := greeting(path); got != want {
			t.Errorf("greeting(%q) = %q, want %q", path, got, want)
		}
	}
}
