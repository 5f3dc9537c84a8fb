package launch

import "golang.org/x/sys/unix"

// Calls are the system call numbers of one architecture that the filter looks at.
type Calls struct {
	Bind, Listen, SetSockOpt uint32
}

// Offsets in struct seccomp_data (linux/seccomp.h). The filter reads 32 bits at a time; both architectures skep knows are little-endian, so the low
// half of an argument comes first. The arguments looked at are ints: the kernel itself ignores their high halves.
const (
	offsetNR      = 0
	offsetArch    = 4
	offsetLevel   = 16 + 8*1
	offsetOptname = 16 + 8*2
)

// Filter returns the classic BPF program of bind sharing for an architecture (an AUDIT_ARCH_ value) and its call numbers: USER_NOTIF for bind(2),
// listen(2) and setsockopt(2) of IPV6_V6ONLY, ALLOW for everything else, which includes every call of another architecture (32-bit programs and x32,
// whose sockets are then not shared). It is pure.
func Filter(arch uint32, calls Calls) []unix.SockFilter {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		answer = unix.BPF_RET | unix.BPF_K
	)
	return []unix.SockFilter{
		0:  {Code: load, K: offsetArch},
		1:  {Code: equal, K: arch, Jf: 8}, // allow
		2:  {Code: load, K: offsetNR},
		3:  {Code: equal, K: calls.Bind, Jt: 7},   // notify
		4:  {Code: equal, K: calls.Listen, Jt: 6}, // notify
		5:  {Code: equal, K: calls.SetSockOpt, Jf: 4},
		6:  {Code: load, K: offsetLevel},
		7:  {Code: equal, K: unix.IPPROTO_IPV6, Jf: 2},
		8:  {Code: load, K: offsetOptname},
		9:  {Code: equal, K: unix.IPV6_V6ONLY, Jt: 1}, // notify
		10: {Code: answer, K: unix.SECCOMP_RET_ALLOW},
		11: {Code: answer, K: unix.SECCOMP_RET_USER_NOTIF},
	}
}
