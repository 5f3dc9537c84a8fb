package launch

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
)

// run is an interpreter of the instructions the filter has. Everything else, a jump out of the program and an end without RET is a failure, as the kernel's
// verifier (bpf_check_classic) would refuse it.
func run(t *testing.T, prog []unix.SockFilter, data []byte) uint32 {
	t.Helper()
	var a uint32
	for pc := 0; pc < len(prog); pc++ {
		in := prog[pc]
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if in.K%4 != 0 || int(in.K)+4 > len(data) {
				t.Fatalf("instruction %d loads from offset %d", pc, in.K)
			}
			a = binary.LittleEndian.Uint32(data[in.K:])
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			if a == in.K {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		default:
			t.Fatalf("instruction %d has code %#x", pc, in.Code)
		}
	}
	t.Fatal("the program has no end")
	return 0
}

func encodeData(d sys.SeccompData) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(d.NR))
	b = binary.LittleEndian.AppendUint32(b, d.Arch)
	b = binary.LittleEndian.AppendUint64(b, d.InstructionPointer)
	for _, arg := range d.Args {
		b = binary.LittleEndian.AppendUint64(b, arg)
	}
	return b
}

// wanted is the same decision in plain words.
func wanted(d sys.SeccompData, arch uint32, calls Calls) uint32 {
	stop := d.Arch == arch && (uint32(d.NR) == calls.Bind || uint32(d.NR) == calls.Listen ||
		uint32(d.NR) == calls.SetSockOpt && uint32(d.Args[1]) == unix.IPPROTO_IPV6 && uint32(d.Args[2]) == unix.IPV6_V6ONLY)
	if stop {
		return unix.SECCOMP_RET_USER_NOTIF
	}
	return unix.SECCOMP_RET_ALLOW
}

func TestFilterStopsBindListenAndV6OnlyAlone(t *testing.T) {
	const x32 = 0x40000000
	arches := map[uint32]Calls{
		unix.AUDIT_ARCH_X86_64:  {Bind: 49, Listen: 50, SetSockOpt: 54},
		unix.AUDIT_ARCH_AARCH64: {Bind: 200, Listen: 201, SetSockOpt: 208},
	}
	for arch, calls := range arches {
		prog := Filter(arch, calls)
		for _, c := range []struct {
			name string
			data sys.SeccompData
			stop bool
		}{
			{"bind", sys.SeccompData{NR: int32(calls.Bind), Arch: arch}, true},
			{"listen", sys.SeccompData{NR: int32(calls.Listen), Arch: arch}, true},
			{"IPV6_V6ONLY", sys.SeccompData{NR: int32(calls.SetSockOpt), Arch: arch, Args: [6]uint64{3, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY}}, true},
			{"IPV6_V6ONLY with rubbish above the ints", sys.SeccompData{NR: int32(calls.SetSockOpt), Arch: arch, Args: [6]uint64{3, 1<<63 | unix.IPPROTO_IPV6, 1<<32 | unix.IPV6_V6ONLY}}, true},
			{"another level", sys.SeccompData{NR: int32(calls.SetSockOpt), Arch: arch, Args: [6]uint64{3, unix.IPPROTO_TCP, unix.IPV6_V6ONLY}}, false},
			{"another option", sys.SeccompData{NR: int32(calls.SetSockOpt), Arch: arch, Args: [6]uint64{3, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS}}, false},
			{"connect", sys.SeccompData{NR: unix.SYS_CONNECT, Arch: arch}, false},
			{"x32", sys.SeccompData{NR: int32(calls.Bind | x32), Arch: arch}, false},
			{"32 bits", sys.SeccompData{NR: int32(calls.Bind), Arch: unix.AUDIT_ARCH_I386}, false},
		} {
			got := run(t, prog, encodeData(c.data))
			if (got == unix.SECCOMP_RET_USER_NOTIF) != c.stop || !c.stop && got != unix.SECCOMP_RET_ALLOW {
				t.Errorf("%#x: %s: action %#x, want stop %v", arch, c.name, got, c.stop)
			}
		}
		// Random calls near the interesting ones.
		r := rand.New(rand.NewPCG(1, uint64(arch)))
		for range 20000 {
			d := sys.SeccompData{NR: int32(calls.Bind + uint32(r.IntN(12)) - 2), Arch: arch + uint32(r.IntN(2)), InstructionPointer: r.Uint64()}
			for k := range d.Args {
				d.Args[k] = r.Uint64()<<32 | uint64(r.IntN(64))
			}
			if got, want := run(t, prog, encodeData(d)), wanted(d, arch, calls); got != want {
				t.Fatalf("%+v: action %#x, want %#x", d, got, want)
			}
		}
	}
}

func TestNativeFilterHasThisMachinesNumbers(t *testing.T) {
	prog := NativeFilter()
	if len(prog) == 0 {
		t.Skip("no filter for this architecture")
	}
	if prog[3].K != unix.SYS_BIND || prog[4].K != unix.SYS_LISTEN || prog[5].K != unix.SYS_SETSOCKOPT {
		t.Errorf("numbers %d, %d, %d", prog[3].K, prog[4].K, prog[5].K)
	}
}
