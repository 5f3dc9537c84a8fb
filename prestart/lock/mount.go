package lock

import (
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// local names the mount option by which the locks of file's volume stay on this
// node, where flock(2) succeeds and means nothing to other nodes; "" when there
// is none, or when /proc does not tell.
func local(file *os.File) string {
	info, err := file.Stat()
	if err != nil {
		return ""
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	return localOption(string(mounts), unix.Major(uint64(stat.Dev)), unix.Minor(uint64(stat.Dev)))
}

// localOption looks for such an option of the device in the text of
// /proc/PID/mountinfo, proc(5): the third field is MAJOR:MINOR, and after the
// field "-" come the type, the source and the options of the file system.
//
// nfs(5): nolock and local_lock=flock or all keep flock(2) on the client.
// mount.cifs(8): nobrl sends no locks, which flock(2) becomes, to the server.
func localOption(mounts string, major, minor uint32) string {
	device := strconv.FormatUint(uint64(major), 10) + ":" + strconv.FormatUint(uint64(minor), 10)
	for line := range strings.Lines(mounts) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[2] != device {
			continue
		}
		for i, field := range fields {
			if field != "-" || len(fields) < i+4 {
				continue
			}
			for option := range strings.SplitSeq(fields[i+3], ",") {
				switch kind := fields[i+1]; {
				case (kind == "nfs" || kind == "nfs4") && (option == "nolock" || option == "local_lock=flock" || option == "local_lock=all"),
					(kind == "cifs" || kind == "smb3") && option == "nobrl":
					return option
				}
			}
			break
		}
	}
	return ""
}
