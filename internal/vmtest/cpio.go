package vmtest

import (
	"fmt"
	"io"
)

// File is one file of an initramfs.
type File struct {
	Name string // without a leading slash
	Mode uint32 // type and permissions as in stat(2): 0o100755 a program, 0o40755 a folder
	Data []byte
}

// WriteArchive writes files as the kernel reads an initramfs: the "new ASCII" form of
// cpio, uncompressed (Documentation/driver-api/early-userspace/buffer-format.rst).
// Folders have to come before what is in them.
func WriteArchive(w io.Writer, files []File) error {
	for i, f := range append(files[:len(files):len(files)], File{Name: "TRAILER!!!"}) {
		links := 1
		if f.Mode&0o170000 == 0o40000 {
			links = 2
		}
		// magic, ino, mode, uid, gid, nlink, mtime, filesize, major and minor of the
		// device and of the file if it is one, namesize with its NUL, checksum
		header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			i+1, f.Mode, 0, 0, links, 0, len(f.Data), 0, 0, 0, 0, len(f.Name)+1, 0)
		for _, part := range [][]byte{[]byte(header + f.Name + "\x00"), f.Data} {
			// The header with the name, and the data, are each filled up to 4 bytes.
			if _, err := w.Write(append(part[:len(part):len(part)], make([]byte, -len(part)&3)...)); err != nil {
				return fmt.Errorf("cannot write %s to the archive: %w", f.Name, err)
			}
		}
	}
	return nil
}
