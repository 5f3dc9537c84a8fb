// Step is a program for images with nothing else in them: it prints its name,
// its arguments and what earlier ones handed over, and adds its name to that.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	line := filepath.Base(os.Args[0])
	for _, arg := range os.Args[1:] {
		line += fmt.Sprintf(" %q", arg)
	}
	steps := os.Getenv("STEPS")
	fmt.Println(line + ": STEPS=" + steps)
	name := os.Getenv("SKEP_ENV")
	if name == "" {
		return // the command itself
	}
	file, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = fmt.Fprintf(file, "STEPS=%s/%s\n", steps, filepath.Base(os.Args[0]))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, strings.TrimSpace(err.Error()))
		os.Exit(1)
	}
}
