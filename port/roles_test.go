package port_test

import (
	"fmt"
	"net/http"
	"os"
	"sort"
	"unsafe"

	"golang.org/x/sys/unix"
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

// installOldFilter installs a filter with a listener and no other flag.
func installOldFilter(prog []unix.SockFilter) (int, error) {
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
