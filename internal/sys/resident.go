package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The entries of an auxiliary vector that tell where the program's headers are, and a header of a loaded segment
// (getauxval(3), elf(5)).
const (
	auxHeaders     = 3 // AT_PHDR
	auxHeaderBytes = 4 // AT_PHENT
	auxHeaderCount = 5 // AT_PHNUM
	segmentLoaded  = 1 // PT_LOAD
)

// segment is Elf64_Phdr of elf(5).
type segment struct {
	kind, flags                                           uint32
	offset, address, physical, fileBytes, memBytes, align uint64
}

// KeepProgram has the kernel keep those pages of this program's file in memory that are there, and those that will be
// read, whatever else needs memory (mlock2(2), MLOCK_ONFAULT). It takes no page that is not used. Children do not
// inherit it.
//
// On 32-bit machines, whose headers are of another form, it does nothing but say EINVAL. Any other error is the kernel's: ENOSYS before 4.4, EPERM or ENOMEM where RLIMIT_MEMLOCK is less than the program's size
// (8 MiB since Linux 5.16, 64 KiB before).
func KeepProgram() error {
	aux, err := unix.Auxv()
	if err != nil {
		return err
	}
	var headers, size, count uintptr
	for _, a := range aux {
		switch a[0] {
		case auxHeaders:
			headers = a[1]
		case auxHeaderBytes:
			size = a[1]
		case auxHeaderCount:
			count = a[1]
		}
	}
	if size != unsafe.Sizeof(segment{}) {
		return unix.EINVAL
	}
	for ; count > 0; count-- {
		s := (*segment)(*(*unsafe.Pointer)(unsafe.Pointer(&headers))) // not a pointer to Go's memory
		headers += size
		if s.kind != segmentLoaded {
			continue
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_MLOCK2, uintptr(s.address), uintptr(s.memBytes), unix.MLOCK_ONFAULT); errno != 0 {
			return errno
		}
	}
	return nil
}
