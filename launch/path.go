package launch

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
)

// DefaultPath is searched when PATH is unset or empty. It is what Docker gives a container without one.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Exit codes of a command that could not be started, as POSIX shells, env(1) and tini use them.
const (
	ExitOwnFault      = 125 // what comes before the command failed, such as becoming the user
	ExitCannotExecute = 126 // found, but not executable
	ExitNotFound      = 127 // not found
)

// LookPathError says that a command cannot be started. Err is the cause: ENOENT for not found, EISDIR for a directory, EACCES for a file without
// the right to execute it, or what the file system said.
type LookPathError struct {
	File string
	Err  error
}

func (e *LookPathError) Error() string {
	if errors.Is(e.Err, unix.ENOENT) && !strings.Contains(e.File, "/") {
		return "cannot run " + e.File + ": not found in PATH"
	}
	return "cannot run " + e.File + ": " + describe(e.Err)
}

func (e *LookPathError) Unwrap() error { return e.Err }

// LookPath finds the program that execvp(3) would run for file with the search path path, an empty path meaning DefaultPath. A name with a slash is
// not searched. An empty element of the path is the current directory, as in POSIX. What is found but may not be executed is skipped, and decides
// the error when nothing better follows. The rights are those of the effective user (faccessat2(2); before Linux 5.8 those of the real user). The error
// is a *LookPathError; see ExitCode.
func LookPath(file, path string) (string, error) { return LookPathIn("", file, path) }

// LookPathIn is LookPath for a process whose current directory is dir. What it returns is relative where LookPath's is: to dir.
func LookPathIn(dir, file, path string) (string, error) {
	found := func(file string) error {
		if dir != "" && !strings.HasPrefix(file, "/") {
			file = dir + "/" + file
		}
		return executable(file)
	}
	if file == "" {
		return "", &LookPathError{File: `""`, Err: unix.ENOENT}
	}
	if strings.IndexByte(file, 0) >= 0 {
		return "", &LookPathError{File: "a name with a zero byte", Err: unix.ENOENT}
	}
	if strings.Contains(file, "/") {
		if err := found(file); err != nil {
			return "", &LookPathError{File: file, Err: err}
		}
		return file, nil
	}
	if path == "" {
		path = DefaultPath
	}
	cause := error(unix.ENOENT)
	for rest, more := path, true; more; {
		var element string
		element, rest, more = strings.Cut(rest, ":")
		if element == "" {
			element = "."
		}
		candidate := element + "/" + file
		err := found(candidate)
		switch {
		case err == nil:
			return candidate, nil
		case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		case errors.Is(cause, unix.ENOENT):
			cause = err
		}
	}
	return "", &LookPathError{File: file, Err: cause}
}

// executable returns nil for a regular file that may be executed.
func executable(file string) error {
	var st unix.Stat_t
	if err := sys.RetryEINTR(func() error { return unix.Stat(file, &st) }); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return unix.EISDIR
	case unix.S_IFREG:
	default:
		return unix.EACCES
	}
	if st.Mode&0o111 == 0 {
		return unix.EACCES // Root passes every other check, and execve still refuses.
	}
	return unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS)
}

// ExitCode returns the exit status that belongs to an error of LookPath or execve: 127 when the program, or the interpreter it names, does not exist, 126 for
// every other reason, 0 for nil.
func ExitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, unix.ENOENT):
		return ExitNotFound
	default:
		return ExitCannotExecute
	}
}

// describe is the text of an error number as strerror(3) has it.
func describe(err error) string {
	switch e := sys.Errno(err); e {
	case unix.EISDIR:
		return "it is a directory"
	default:
		return e.Error()
	}
}
