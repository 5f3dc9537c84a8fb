package steer

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// fataler is what interpret needs of a test.
type fataler interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// interpret runs a program on a packet whose network header is packet[0], as the kernel would: cBPF registers start at 0, a load beyond the packet ends the
// program with 0, and so does a modulo by zero. It fails the test on anything that the kernel's checker (bpf_check_classic) would refuse.
func interpret(t fataler, prog []unix.SockFilter, packet []byte) uint32 {
	t.Helper()
	if len(prog) == 0 || len(prog) > maxInstructions {
		t.Fatalf("program has %d instructions", len(prog))
	}
	var a, x uint32
	for pc := 0; ; pc++ {
		if pc >= len(prog) {
			t.Fatal("the program runs over its end")
		}
		in := prog[pc]
		at := int(in.K - offNet)
		switch in.Code {
		case unix.BPF_LD | unix.BPF_B | unix.BPF_ABS:
			if at < 0 || at >= len(packet) {
				return 0
			}
			a = uint32(packet[at])
		case unix.BPF_LD | unix.BPF_H | unix.BPF_ABS:
			if at < 0 || at+2 > len(packet) {
				return 0
			}
			a = uint32(binary.BigEndian.Uint16(packet[at:]))
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if at < 0 || at+4 > len(packet) {
				return 0
			}
			a = binary.BigEndian.Uint32(packet[at:])
		case unix.BPF_LD | unix.BPF_H | unix.BPF_IND:
			at += int(x)
			if at < 0 || at+2 > len(packet) {
				return 0
			}
			a = uint32(binary.BigEndian.Uint16(packet[at:]))
		case unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH:
			if at < 0 || at >= len(packet) {
				return 0
			}
			x = uint32(packet[at]&0xf) << 2
		case unix.BPF_ALU | unix.BPF_ADD | unix.BPF_K:
			a += in.K
		case unix.BPF_ALU | unix.BPF_MUL | unix.BPF_K:
			if uint64(a)*uint64(in.K) > math.MaxUint32 {
				t.Fatal("the multiplication overflows")
			}
			a *= in.K
		case unix.BPF_ALU | unix.BPF_SUB | unix.BPF_K:
			a -= in.K
		case unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K:
			a >>= in.K
		case unix.BPF_ALU | unix.BPF_DIV | unix.BPF_K, unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K:
			switch {
			case in.K == 0:
				t.Fatal("a division by a constant zero is refused")
			case in.Code == unix.BPF_ALU|unix.BPF_DIV|unix.BPF_K:
				a /= in.K
			default:
				a %= in.K
			}
		case unix.BPF_JMP | unix.BPF_JA:
			if in.K >= uint32(len(prog)) { // jumps backwards are refused
				t.Fatalf("instruction %d jumps to %d of %d", pc, uint64(pc)+uint64(in.K)+1, len(prog))
			}
			pc += int(in.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			pc += branch(a == in.K, in)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			pc += branch(a >= in.K, in)
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		case unix.BPF_RET | unix.BPF_A:
			return a
		default:
			t.Fatalf("instruction %d has the unknown code %#x", pc, in.Code)
		}
	}
}

func branch(yes bool, in unix.SockFilter) int {
	if yes {
		return int(in.Jt)
	}
	return int(in.Jf)
}

// packet is a SYN from the given address and port; options words lengthen an IPv4 header.
func packet(v6 bool, source [4]byte, port uint16, options int) []byte {
	if v6 {
		p := make([]byte, 60)
		p[0] = 0x60
		copy(p[8:], []byte{0xfd, 0, 0, 1})
		copy(p[20:], source[:])
		binary.BigEndian.PutUint16(p[40:], port)
		return p
	}
	p := make([]byte, 40+4*options)
	p[0] = 0x40 | byte(5+options)
	copy(p[12:], source[:])
	binary.BigEndian.PutUint16(p[20+4*options:], port)
	return p
}

// drawChoice draws any valid choice, small or as large as it gets.
func drawChoice(t *rapid.T) Choice {
	size := rapid.SampledFrom([]int{1, 2, 4, 9, 64, MaxMembers, 4 * MaxMembers}).Draw(t, "array size")
	var c Choice
	keep := rapid.IntRange(1, 100).Draw(t, "percent kept")
	seed := rapid.Uint64().Draw(t, "seed")
	r := rand.New(rand.NewPCG(seed, 1))
	weights := rapid.Bool().Draw(t, "weights")
	for i, n := 0, 0; i < size && n < MaxMembers; i++ {
		if r.IntN(100) >= keep {
			continue
		}
		n++
		c.Among = append(c.Among, i)
		for weights && r.IntN(3) > 0 {
			c.Among = append(c.Among, i)
		}
	}
	if rapid.Bool().Draw(t, "probes") {
		shuffled := rapid.Bool().Draw(t, "shuffled")
		for slot, index := range r.Perm(min(size, MaxMembers)) {
			if r.IntN(100) < keep {
				if !shuffled {
					index = slot
				}
				c.Probes = append(c.Probes, Probe{Slot: slot, Index: index})
			}
		}
		r.Shuffle(len(c.Probes), func(i, j int) { c.Probes[i], c.Probes[j] = c.Probes[j], c.Probes[i] })
	}
	c.Salt = rapid.Uint16().Draw(t, "salt")
	return c
}

// TestProgramPicksOnlyTheChosen runs programs for any choice on any packet.
func TestProgramPicksOnlyTheChosen(t *testing.T) {
	var b Builder
	rapid.Check(t, func(rt *rapid.T) {
		c := drawChoice(rt)
		prog := b.Program(c)
		if len(prog) > maxInstructions {
			t.Fatalf("%d members and %d probes make %d instructions", len(c.Among), len(c.Probes), len(prog))
		}
		chosen := make(map[uint32]bool)
		for _, i := range c.Among {
			chosen[uint32(i)] = true
		}
		if len(c.Among) == 0 {
			chosen[noIndex] = true
		}
		slots := make(map[[4]byte]int)
		for _, p := range c.Probes {
			slots[ProbeSource(p.Slot)] = p.Index
		}
		for range 50 {
			v6 := rapid.Bool().Draw(rt, "v6")
			source := rapid.SampledFrom([][4]byte{{127, 0, 0, 1}, {10, 0, 0, 2}, {126, 255, 255, 255}, {255, 255, 255, 255}, {0, 0, 0, 0}, {127, 0, 2, 2}}).Draw(rt, "source")
			if rapid.Bool().Draw(rt, "loopback") {
				source = ProbeSource(rapid.IntRange(0, MaxMembers-1).Draw(rt, "slot"))
			}
			p := packet(v6, source, rapid.Uint16().Draw(rt, "port"), rapid.IntRange(0, 10).Draw(rt, "options"))
			got := interpret(t, prog, p)
			if want, ok := slots[source]; ok && !v6 {
				if got != uint32(want) {
					rt.Fatalf("source %v got index %d, want %d", source, got, want)
				}
			} else if !chosen[got] {
				rt.Fatalf("source %v got index %d, which is not among %v", source, got, c.Among)
			}
		}
	})
}

// TestProgramSpreadsEvenly counts over all ports, the way Linux uses them and at random.
func TestProgramSpreadsEvenly(t *testing.T) {
	var b Builder
	for _, among := range [][]int{{0}, {3}, {0, 1}, {0, 2}, {1, 2, 3}, {0, 2, 3, 7}, {5, 9, 11, 12, 13, 30, 31}, {0, 0, 1}, {2, 3, 3, 3, 3, 5, 6, 6}} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprint(among, v6), func(t *testing.T) {
				prog := b.Program(Choice{Among: among, Salt: 12345})
				const draws = 20000
				counts := make(map[uint32]int)
				r := rand.New(rand.NewPCG(7, 7))
				for range draws {
					counts[interpret(t, prog, packet(v6, [4]byte{10, 1, 2, 3}, uint16(r.Uint32()), 0))]++
				}
				share := make(map[int]int)
				for _, i := range among {
					share[i]++
				}
				for i, n := range share {
					mean := float64(draws) / float64(len(among)) * float64(n)
					// Five standard deviations of a binomial count are below sqrt(mean)*5.
					if d := float64(counts[uint32(i)]) - mean; d*d > 25*mean {
						t.Errorf("index %d got %d of %d", i, counts[uint32(i)], draws)
					}
				}
				// In turn, for a client whose ports rise evenly.
				clear(counts)
				for n := range 16 * len(among) {
					counts[interpret(t, prog, packet(v6, [4]byte{10, 1, 2, 3}, uint16(n*int(portWidth(len(among)))), 0))]++
				}
				for i, n := range share {
					if counts[uint32(i)] != 16*n {
						t.Errorf("a burst gave index %d %d connections, want %d", i, counts[uint32(i)], 16*n)
					}
				}
			})
		}
	}
}

// TestPortsSpreadBetterThanChance plays bursts of 64 connections as a Linux client makes them, and the same with random numbers.
func TestPortsSpreadBetterThanChance(t *testing.T) {
	for _, c := range []struct {
		members int
		meet    int // how often two in a row may go to the same, % of what chance does
	}{{2, 80}, {3, 62}, {4, 55}, {8, 55}} {
		var b Builder
		var all []int
		for i := range c.members {
			all = append(all, i)
		}
		prog := b.Program(Choice{Among: all})
		r := rand.New(rand.NewPCG(5, 5))
		port := uint16(40000)
		byPort := func() int {
			port += 2 + 2*uint16(r.IntN(8))
			return int(interpret(t, prog, packet(false, [4]byte{10, 0, 0, 9}, port, 0)))
		}
		byChance := func() int { return r.IntN(c.members) }
		const bursts, size = 2000, 64
		play := func(pick func() int) (uneven, meet int) {
			for range bursts {
				counts := make([]int, c.members)
				last := -1
				for range size {
					i := pick()
					counts[i]++
					if i == last {
						meet++
					}
					last = i
				}
				if float64(slices.Max(counts)*c.members) > 1.3*size {
					uneven++
				}
			}
			return uneven, meet
		}
		uneven, meet := play(byPort)
		unevenByChance, meetByChance := play(byChance)
		t.Logf("%d members, uneven bursts: %d by port, %d by chance of %d; in a row to the same: %d and %d", c.members, uneven, unevenByChance, bursts, meet, meetByChance)
		if uneven >= unevenByChance || c.members == 4 && 10*uneven > 7*unevenByChance || 100*meet > c.meet*meetByChance {
			t.Errorf("%d members: ports do not enough better than chance", c.members)
		}
	}
}

// TestLargestProgramFits builds the longest program there is: no two members next to each other, and probes in an order without any runs.
func TestLargestProgramFits(t *testing.T) {
	var c Choice
	for i := range MaxMembers {
		c.Among = append(c.Among, 2*i)
		c.Probes = append(c.Probes, Probe{Slot: i, Index: 2 * (i * 253 % MaxMembers)})
	}
	var b Builder
	prog := b.Program(c)
	if len(prog) > maxInstructions {
		t.Fatalf("%d instructions", len(prog))
	}
	for slot := range MaxMembers {
		if got := interpret(t, prog, packet(false, ProbeSource(slot), 1, 0)); got != uint32(c.Probes[slot].Index) {
			t.Fatalf("slot %d got index %d, want %d", slot, got, c.Probes[slot].Index)
		}
	}
	group := newGroup(t, "127.0.0.1", 1)
	if err := Attach(group.fds[0], prog); err != nil {
		t.Errorf("the kernel does not take %d instructions: %v", len(prog), err)
	}
}

func TestProbeSourceIsUnique(t *testing.T) {
	seen := map[[4]byte]int{{127, 0, 0, 1}: -1}
	for slot := range MaxMembers {
		a := ProbeSource(slot)
		if other, ok := seen[a]; ok {
			t.Errorf("slots %d and %d both have %v", other, slot, a)
		}
		seen[a] = slot
	}
	if got, want := ProbeSource(3), ([4]byte{127, 0, 0, 4}); got != want {
		t.Errorf("slot 3 has %v, want %v", got, want)
	}
}

func TestBuilderDoesNotAllocate(t *testing.T) {
	c := Choice{Among: []int{0, 2, 3, 5}, Probes: []Probe{{0, 1}, {1, 0}, {2, 2}}}
	var b Builder
	b.Program(c)
	if n := testing.AllocsPerRun(100, func() { b.Program(c) }); n != 0 {
		t.Errorf("%v allocations per program", n)
	}
}

func FuzzProgram(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint16(0), uint8(1), uint16(1))
	f.Add([]byte{255, 0, 255, 0, 7}, uint16(65535), uint8(0), uint16(65535))
	f.Fuzz(func(t *testing.T, bits []byte, port uint16, slot uint8, salt uint16) {
		c := Choice{Salt: salt}
		for i := range min(8*len(bits), MaxMembers) {
			if bits[i/8]>>(i%8)&1 != 0 {
				c.Among = append(c.Among, i)
			}
		}
		for i := range len(bits) / 2 {
			c.Probes = append(c.Probes, Probe{Slot: i, Index: int(bits[i])})
		}
		var b Builder
		prog := b.Program(c)
		got := interpret(t, prog, packet(false, ProbeSource(int(slot)), port, 0))
		if int(slot) < len(bits)/2 {
			if got != uint32(bits[slot]) {
				t.Fatalf("slot %d got %d, want %d", slot, got, bits[slot])
			}
			return
		}
		if len(c.Among) == 0 {
			if got != noIndex {
				t.Fatalf("got %d from an empty choice", got)
			}
			return
		}
		if i := int(got); i >= 8*len(bits) || bits[i/8]>>(i%8)&1 == 0 {
			t.Fatalf("got %d, which was not chosen", got)
		}
	})
}
