package sys

import (
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// dumpable is the process's own dumpable flag before the first change of a file-system user cleared it.
var dumpable = sync.OnceValue(func() int {
	v, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	return v
})

// AsFileUser runs f on a thread of its own whose file-system user and group are uid and gid (setfsuid(2)), and returns f's error. It is how a
// root without CAP_SYS_PTRACE, the root of a container, may read /proc/PID/mem of its own child that runs as another user: that check compares
// file-system ids with the ids of the process (kernel/ptrace.c, PTRACE_MODE_FSCREDS). Without the capabilities to change ids it returns EPERM and f
// is not called.
//
// The kernel clears the dumpable flag of the whole process on such a change; it is put back afterwards. A thread whose ids could not be put back is
// never used again. f must not start goroutines that count on the ids.
func AsFileUser(uid, gid int, f func() error) error {
	before := dumpable()
	done := make(chan error)
	go func() {
		// Without UnlockOSThread the runtime ends the thread together with the goroutine.
		runtime.LockOSThread()
		oldUID, oldGID := setFileUID(-1), setFileGID(-1)
		setFileGID(gid)
		setFileUID(uid)
		err := os.NewSyscallError("setfsuid", unix.EPERM)
		if setFileUID(-1) == uid && setFileGID(-1) == gid {
			err = f()
		}
		setFileUID(oldUID)
		setFileGID(oldGID)
		if setFileUID(-1) == oldUID && setFileGID(-1) == oldGID {
			runtime.UnlockOSThread()
		}
		if before == 1 {
			_ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
		}
		done <- err
	}()
	return <-done
}

// setFileUID and setFileGID change the ids of the calling thread alone and return the ones before; -1 is never valid and so changes nothing.
func setFileUID(uid int) int {
	old, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	return int(int32(old))
}

func setFileGID(gid int) int {
	old, _, _ := unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	return int(int32(old))
}
