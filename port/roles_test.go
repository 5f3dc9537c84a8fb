package port_test

import (
	"fmt"
	"net/http"
	"os"
	"sort"
)

// roles are the programs that tests run as workers: unmodified as far as skep is concerned, they only know system calls.
var roles = map[string]func(args []string){}

// play runs the role and ends the process.
func play(name string) {
	f := roles[name]
	if f == nil {
		var names []string
		for n := range roles {
			names = append(names, n)
		}
		sort.Strings(names)
		fmt.Fprintf(os.Stderr, "no role %q; there are %q\n", name, names)
		os.Exit(2)
	}
	f(os.Args[1:])
	os.Exit(0)
}

// serveHTTP is what examples/hello is: a plain net/http server.
func serveHTTP(address string) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintf(w, "pid %d\n", os.Getpid()) })
	fmt.Fprintln(os.Stderr, http.ListenAndServe(address, handler))
	os.Exit(1)
}
