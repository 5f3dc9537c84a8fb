package steer

import (
	"golang.org/x/sys/unix"
)

const (
	// MaxMembers is the largest number of members a Choice may name, and one more than the largest slot number that can have a probe address.
	MaxMembers = 512

	// probeBase is 127.0.0.1, the source of every ordinary loopback client.
	probeBase = 0x7f000001

	// offNet is SKF_NET_OFF of linux/filter.h: loads from here on are relative to the network header. A SO_REUSEPORT program is run with the data
	// pointer behind the TCP header, so this is how it sees addresses and ports.
	offNet = 0xfff00000
)

// Choice is what a Program may pick from.
type Choice struct {
	// Among has the indices, in the kernel's array of the group, of the members that may get a connection: ascending, at most MaxMembers different ones. A member
	// that is to get more than others is in it several times. With none the program answers an index that no array has, and the kernel falls back to its hash over
	// all members.
	Among []int
	// Probes send connections from some loopback sources to one member, whatever Among says. Slots must differ. May be empty.
	Probes []Probe
	// Salt is added before the choice among members. Any number will do; a new one each time keeps a client whose source ports have a period
	// from meeting the same workers for ever.
	Salt uint16
}

// Probe gives the member at Index the connections that come from ProbeSource(Slot).
type Probe struct {
	Slot  int
	Index int
}

// ProbeSource is the loopback address from which a connection reaches the worker in the given slot, 0 to MaxMembers-1, through the shared port: 127.0.0.1
// plus the slot, so slot k has 127.0.0.(k+1) as long as that fits. Slot 0 has 127.0.2.1 instead: 127.0.0.1 is what every loopback client comes from.
func ProbeSource(slot int) [4]byte {
	a := uint32(probeBase) + probeOffset(slot)
	return [4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)}
}

func probeOffset(slot int) uint32 {
	if slot == 0 {
		return MaxMembers
	}
	return uint32(slot)
}

// segment says what becomes of the values from start up to the next segment's start.
type segment struct {
	start uint32
	kind  segmentKind
	k     uint32
}

type segmentKind uint8

const (
	plus  segmentKind = iota // the answer is the value plus k, modulo 2^32
	fixed                    // the answer is k
	miss                     // there is no answer
)

// Builder builds programs without allocating once it has grown. The zero value is ready. It is not for concurrent use.
type Builder struct {
	prog   []unix.SockFilter
	segs   []segment
	probes []Probe
}

// Program builds the classic BPF program for a SO_REUSEPORT group of TCP sockets. The result is valid until the next call.
//
// The choice among members takes the client's source port, not a random number: the port divided by portWidth, plus Salt, modulo their count. Linux gives successive connects from one
// address ports that rise by 2 to 16 (__inet_hash_connect in net/ipv4/inet_hashtables.c), so a burst from one proxy goes round the members more or less in turn.
// With random numbers the busiest of four workers gets much more than its share of 64 connections about twice as often, and two connections in a row meet more
// often in one worker (TestPortsSpreadBetterThanChance). Clients with random ports get a random member.
//
// All jumps are binary searches. A conditional jump reaches 255 instructions (8 bits), longer ways take BPF_JA (32 bits); for MaxMembers members
// and as many probes the program stays below BPF_MAXINSNS (4096).
func (b *Builder) Program(c Choice) []unix.SockFilter {
	b.prog = b.prog[:0]
	if len(c.Among) == 0 && len(c.Probes) == 0 {
		b.emit(unix.BPF_RET|unix.BPF_K, noIndex)
		return b.prog
	}
	// A dual-stack socket gets IPv4 packets with an IPv4 header, so v4-mapped clients need no case of their own.
	b.emit(unix.BPF_LD|unix.BPF_B|unix.BPF_ABS, offNet)
	b.emit(unix.BPF_ALU|unix.BPF_RSH|unix.BPF_K, 4)
	toV6 := len(b.prog)
	b.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 4)
	b.prog[toV6].Jt = 1
	b.emit(unix.BPF_JMP|unix.BPF_JA, 0)

	if len(c.Probes) > 0 {
		b.probeSegments(c.Probes)
		b.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offNet+12)
		b.emit(unix.BPF_ALU|unix.BPF_SUB|unix.BPF_K, probeBase)
		b.search(0, len(b.segs), len(b.prog)+treeSize(b.segs))
	}
	b.emit(unix.BPF_LDX|unix.BPF_B|unix.BPF_MSH, offNet)
	b.emit(unix.BPF_LD|unix.BPF_H|unix.BPF_IND, offNet)
	b.emit(unix.BPF_JMP|unix.BPF_JA, 1)
	// An IPv6 packet with extension headers has other bytes here: still a number.
	b.prog[toV6+1].K = uint32(len(b.prog) - (toV6 + 2))
	b.emit(unix.BPF_LD|unix.BPF_H|unix.BPF_ABS, offNet+40)

	if len(c.Among) == 0 {
		b.emit(unix.BPF_RET|unix.BPF_K, noIndex)
		return b.prog
	}
	b.emit(unix.BPF_ALU|unix.BPF_DIV|unix.BPF_K, portWidth(len(c.Among)))
	b.emit(unix.BPF_ALU|unix.BPF_ADD|unix.BPF_K, uint32(c.Salt))
	if step := b.rankSegments(c.Among); step != 1 {
		b.emit(unix.BPF_ALU|unix.BPF_MUL|unix.BPF_K, step)
	}
	b.emit(unix.BPF_ALU|unix.BPF_MOD|unix.BPF_K, uint32(len(c.Among)))
	b.search(0, len(b.segs), 0)
	return b.prog
}

// rankSegments fills segs with the index for each rank in among. It returns the step by which successive ports go through the ranks: with members that are in it
// several times, one that does not give all the turns of a member in a row.
func (b *Builder) rankSegments(among []int) (step uint32) {
	b.segs = b.segs[:0]
	step = 1
	for lo := 0; lo < len(among); {
		hi := lo + 1
		for hi < len(among) && among[hi] == among[lo] {
			hi++
		}
		s := segment{start: uint32(lo), k: uint32(among[lo] - lo)}
		if hi-lo > 1 {
			s.kind, s.k = fixed, uint32(among[lo])
			step = coprime(uint32(len(among)))
		}
		if n := len(b.segs); n == 0 || b.segs[n-1].kind != s.kind || b.segs[n-1].k != s.k {
			b.segs = append(b.segs, s)
		}
		lo = hi
	}
	return step
}

// coprime is a number near n times the golden ratio without a common divisor with n, so that its multiples modulo n go through all numbers below n.
func coprime(n uint32) uint32 {
	for k := n * 618 / 1000; k > 1; k-- {
		a, b := n, k
		for b != 0 {
			a, b = b, a%b
		}
		if a == 1 {
			return k
		}
	}
	return 1
}

// portWidth is how many successive ports go to the same of n members. Two connections in a row, at ports that are 2 to 16 apart, meet in 38, 19 and 13 % of the cases
// with two, three and four members, which is the least of all widths; by chance in 50, 33 and 25 %.
func portWidth(n int) uint32 { return uint32(max(4, 24/n)) }

// noIndex is out of range in every array: the kernel then uses its hash (reuseport_select_sock in net/core/sock_reuseport.c).
const noIndex = 0xffffffff

// probeSegments fills segs with what each distance from 127.0.0.1 means.
func (b *Builder) probeSegments(probes []Probe) {
	b.probes = append(b.probes[:0], probes...)
	// By insertion: they are nearly in order, and nothing may be allocated here.
	for i := 1; i < len(b.probes); i++ {
		for j := i; j > 0 && probeOffset(b.probes[j].Slot) < probeOffset(b.probes[j-1].Slot); j-- {
			b.probes[j], b.probes[j-1] = b.probes[j-1], b.probes[j]
		}
	}
	b.segs = append(b.segs[:0], segment{kind: miss})
	for _, p := range b.probes {
		at := probeOffset(p.Slot)
		hit := segment{start: at, k: uint32(p.Index) - at}
		if last := len(b.segs) - 1; b.segs[last].start == at {
			b.segs = b.segs[:last] // the gap between two neighbours is empty
		}
		if last := b.segs[len(b.segs)-1]; last.kind == miss || last.k != hit.k {
			b.segs = append(b.segs, hit)
		}
		b.segs = append(b.segs, segment{start: at + 1, kind: miss})
	}
}

// treeSize is the number of instructions that search emits for the segments.
func treeSize(segs []segment) int {
	if len(segs) == 1 {
		if segs[0].kind == plus && segs[0].k != 0 {
			return 2
		}
		return 1
	}
	mid := len(segs) / 2
	left := treeSize(segs[:mid])
	n := 1 + left + treeSize(segs[mid:])
	if left > 255 {
		n++
	}
	return n
}

// search emits the binary search for the accumulator in segs[lo:hi]. A miss goes on at the instruction with the number otherwise.
func (b *Builder) search(lo, hi, otherwise int) {
	if hi-lo == 1 {
		switch s := b.segs[lo]; s.kind {
		case miss:
			b.emit(unix.BPF_JMP|unix.BPF_JA, uint32(otherwise-len(b.prog)-1))
		case fixed:
			b.emit(unix.BPF_RET|unix.BPF_K, s.k)
		case plus:
			if s.k != 0 {
				b.emit(unix.BPF_ALU|unix.BPF_ADD|unix.BPF_K, s.k)
			}
			b.emit(unix.BPF_RET|unix.BPF_A, 0)
		}
		return
	}
	mid := lo + (hi-lo)/2
	at := len(b.prog)
	left := treeSize(b.segs[lo:mid])
	b.emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, b.segs[mid].start)
	if left <= 255 {
		b.prog[at].Jt = uint8(left)
	} else {
		b.prog[at].Jf = 1
		b.emit(unix.BPF_JMP|unix.BPF_JA, uint32(left))
	}
	b.search(lo, mid, otherwise)
	b.search(mid, hi, otherwise)
}

func (b *Builder) emit(code uint16, k uint32) {
	b.prog = append(b.prog, unix.SockFilter{Code: code, K: k})
}
