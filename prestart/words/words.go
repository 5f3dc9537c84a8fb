// Package words splits a --prestart command line into words the way a POSIX
// shell does, without being a shell: an image without /bin/sh can run its steps.
package words

import (
	"errors"
	"strconv"
	"strings"
)

// Error is a command line that cannot be split. Its text never holds the
// command line, which may hold a secret.
type Error struct {
	Pos     int    // of the byte at fault, from 0
	Problem string // what is wrong and what to do about it
}

// Error returns "at character N: problem", counted from 1.
func (e *Error) Error() string {
	return "at character " + strconv.Itoa(e.Pos+1) + ": " + e.Problem
}

// ErrEmpty is the error for a command line without a word.
var ErrEmpty = errors.New("no command")

const needShell = "a shell would act on it and skep is none: put it in single quotes to mean the character, or write sh -c '…' to mean the shell"

// Split splits line by the quoting rules of the POSIX shell (Shell Command
// Language, 2.2): blanks separate words; a backslash keeps the next character;
// single quotes keep everything; double quotes keep everything but a backslash
// before $ ` " \ and newline; a backslash before a newline joins lines.
//
// Nothing is expanded. What only a shell could do is an error that names the
// character ([*Error]): | & ; < > ( ) $ ` and a newline between words, a ~ or
// # at the start of a word, and NAME=value before the program. To pass them on
// silently is never what was meant. Pattern characters (* ? [ ] { }) are taken
// as they are, as a shell does when no file matches: --allow-ips=* is common. In
// double quotes behind a shell's name $ and ` are for that shell.
// A line without any word is [ErrEmpty].
func Split(line string) ([]string, error) {
	var (
		list   []string
		word   strings.Builder
		inWord bool // the word exists, though it may be empty: ''
		quoted bool // some of it was quoted
		start  int
	)
	fail := func(pos int, problem string) ([]string, error) {
		return nil, &Error{Pos: pos, Problem: problem}
	}
	begin := func(pos int) {
		if !inWord {
			inWord, quoted, start = true, false, pos
		}
	}
	end := func() error {
		if !inWord {
			return nil
		}
		text := word.String()
		if len(list) == 0 && !quoted && assignment(text) {
			return &Error{Pos: start, Problem: "NAME=value before a command is for a shell: write env NAME=value …, or sh -c '…'"}
		}
		list = append(list, text)
		word.Reset()
		inWord = false
		return nil
	}

	for i := 0; i < len(line); i++ {
		switch c := line[i]; c {
		case 0:
			return fail(i, "a NUL cannot be in an argument")
		case ' ', '\t':
			if err := end(); err != nil {
				return nil, err
			}
		case '\n':
			if err := end(); err != nil {
				return nil, err
			}
			if len(list) > 0 && strings.Trim(line[i:], " \t\n") != "" {
				return fail(i, "a line ends and another follows: give each command its own --prestart, or join lines with a backslash")
			}
		case '\\':
			if i+1 == len(line) {
				return fail(i, "a backslash at the end has nothing to quote")
			}
			i++
			switch line[i] {
			case 0:
				return fail(i, "a NUL cannot be in an argument")
			case '\n': // joined lines
			default:
				begin(i - 1)
				quoted = true
				word.WriteByte(line[i])
			}
		case '\'':
			n := strings.IndexByte(line[i+1:], '\'')
			if n < 0 {
				return fail(i, "this single quote is never closed")
			}
			text := line[i+1 : i+1+n]
			if z := strings.IndexByte(text, 0); z >= 0 {
				return fail(i+1+z, "a NUL cannot be in an argument")
			}
			begin(i)
			quoted = true
			word.WriteString(text)
			i += n + 1
		case '"':
			begin(i)
			quoted = true
			next, err := double(line, i, &word, len(list) > 0 && isShell(list[0]))
			if err != nil {
				return nil, err
			}
			i = next
		case '|', '&', ';', '<', '>', '(', ')', '$', '`':
			return fail(i, "unquoted "+string(c)+": "+needShell)
		case '~', '#':
			if !inWord {
				return fail(i, "unquoted "+string(c)+" at the start of a word: "+needShell)
			}
			word.WriteByte(c)
		default:
			begin(i)
			word.WriteByte(c)
		}
	}
	if err := end(); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, ErrEmpty
	}
	return list, nil
}

// isShell tells whether a program is a shell, which expands by itself what is
// written in double quotes behind it: sh -c "echo $HOME" means the same here as
// when typed, but that the inner shell does the work.
func isShell(program string) bool {
	switch program[strings.LastIndexByte(program, '/')+1:] {
	case "sh", "ash", "bash", "dash", "ksh", "zsh", "busybox":
		return true
	}
	return false
}

// double writes what is in the double quotes that open at line[open] and
// returns the index of those that close. Only for a shell are $ and ` kept.
func double(line string, open int, word *strings.Builder, shell bool) (int, error) {
	for i := open + 1; i < len(line); i++ {
		switch c := line[i]; c {
		case 0:
			return 0, &Error{Pos: i, Problem: "a NUL cannot be in an argument"}
		case '"':
			return i, nil
		case '$', '`':
			if !shell {
				return 0, &Error{Pos: i, Problem: string(c) + " in double quotes: " + needShell}
			}
			word.WriteByte(c)
		case '\\':
			if i+1 < len(line) {
				switch line[i+1] {
				case '\n':
					i++
					continue
				case '$', '`', '"', '\\':
					i++
				}
			}
			word.WriteByte(line[i])
		default:
			word.WriteByte(c)
		}
	}
	return 0, &Error{Pos: open, Problem: "this double quote is never closed"}
}

// assignment: the shell would take the word as NAME=value, a variable for the
// command that follows.
func assignment(word string) bool {
	name, _, ok := strings.Cut(word, "=")
	if !ok || name == "" {
		return false
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return true
}
