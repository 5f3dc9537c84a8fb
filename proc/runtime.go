package proc

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// Runtime names the language runtime of a process if it is one that uses all CPUs by itself: "java", "go" or "dotnet",
// else "". It is told by the program's name, by the sections of its file (every Go program has .go.buildinfo, even a
// stripped one), and by the libraries it has mapped. An error means that the process could not be looked at.
func (f FS) Runtime(pid int) (string, error) {
	link, err := os.Readlink(f.path(pid, "exe"))
	if err != nil {
		if gone(err) {
			return "", nil
		}
		return "", fmt.Errorf("cannot tell the program of process %d: %w", pid, err)
	}
	switch path.Base(strings.TrimSuffix(link, " (deleted)")) {
	case "java":
		return "java", nil
	case "dotnet":
		return "dotnet", nil
	}
	if exe, err := os.Open(f.path(pid, "exe")); err == nil {
		is := hasSection(exe, ".go.buildinfo")
		exe.Close()
		if is {
			return "go", nil
		}
	}
	b, err := os.ReadFile(f.path(pid, "maps"))
	if err != nil {
		if gone(err) {
			return "", nil
		}
		return "", fmt.Errorf("cannot tell the libraries of process %d: %w", pid, err)
	}
	return runtimeOfMaps(string(b)), nil
}

// runtimeOfMaps looks for the runtime's library among the mapped files.
func runtimeOfMaps(maps string) string {
	for line := range strings.Lines(maps) {
		i := strings.IndexByte(line, '/')
		if i < 0 {
			continue
		}
		switch name := strings.TrimSuffix(strings.TrimSuffix(line[i:], "\n"), " (deleted)"); {
		case strings.HasSuffix(name, "/libjvm.so"):
			return "java"
		case strings.HasSuffix(name, "/libcoreclr.so"), name == "/memfd:doublemapper":
			// A program in a single file has the runtime linked in; the memory that its compiler writes to is still
			// named.
			return "dotnet"
		}
	}
	return ""
}

// Bounds on what is believed of a foreign file.
const (
	maxSections = 4096
	maxNames    = 1 << 20
)

// hasSection says whether an ELF file has a section of this name. It reads the few bytes it needs by hand: debug/elf
// would bring the decompressors and debug/dwarf into PID 1. See elf(5).
func hasSection(r io.ReaderAt, name string) bool {
	var h [64]byte
	if n, _ := r.ReadAt(h[:], 0); n < 52 || string(h[:4]) != "\x7fELF" {
		return false
	}
	var order binary.ByteOrder = binary.LittleEndian
	if h[5] == 2 {
		order = binary.BigEndian
	}
	var off uint64
	var size, count, names uint16 // of a section header, of headers, of the one that holds the names
	wide := h[4] == 2
	if wide {
		off = order.Uint64(h[40:])
		size, count, names = order.Uint16(h[58:]), order.Uint16(h[60:]), order.Uint16(h[62:])
	} else {
		off = uint64(order.Uint32(h[32:]))
		size, count, names = order.Uint16(h[46:]), order.Uint16(h[48:]), order.Uint16(h[50:])
	}
	least := uint16(40)
	if wide {
		least = 64
	}
	if size < least || count > maxSections || names >= count || off > 1<<62 {
		return false
	}
	headers := make([]byte, int(size)*int(count))
	if _, err := r.ReadAt(headers, int64(off)); err != nil {
		return false
	}
	text := func(i uint16) (off, length uint64) {
		s := headers[int(i)*int(size):]
		if wide {
			return order.Uint64(s[24:]), order.Uint64(s[32:])
		}
		return uint64(order.Uint32(s[16:])), uint64(order.Uint32(s[20:]))
	}
	at, length := text(names)
	if length > maxNames || at > 1<<62 {
		return false
	}
	table := make([]byte, length)
	if _, err := r.ReadAt(table, int64(at)); err != nil {
		return false
	}
	for i := range int(count) {
		n := uint64(order.Uint32(headers[i*int(size):]))
		if n < length && strings.HasPrefix(string(table[n:min(length, n+uint64(len(name))+1)]), name+"\x00") {
			return true
		}
	}
	return false
}
