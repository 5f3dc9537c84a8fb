package reaper

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestParseParent(t *testing.T) {
	for stat, want := range map[string]int{
		"1 (init) S 0 1 1 0 -1": 0,
		"7 (sh) S 1 7 7 0":      1,
		"7 (a b) S 12 7":        12,
		"7 (a) S 1 (b) R 34 7":  34, // a name may hold anything
		"7 () S 5 6":            5,
		"7 (\n) Z 3":            3,
	} {
		if got, ok := parseParent([]byte(stat)); !ok || got != want {
			t.Errorf("%q: %d, %v, want %d", stat, got, ok, want)
		}
	}
	for _, stat := range []string{"", "7", "7 (sh", "7 (sh)", "7 (sh) S", "7 (sh) S x", "7 (sh) S -1", "7 (sh) S 99999999999999999999"} {
		if got, ok := parseParent([]byte(stat)); ok {
			t.Errorf("%q: %d", stat, got)
		}
	}
}

func FuzzParseParent(f *testing.F) {
	f.Add("sh", "S", 1, "2 3 4")
	f.Add(") R 5 (", "Z", 0, "")
	f.Add("", "", -7, ")")
	f.Fuzz(func(t *testing.T, name, state string, parent int, rest string) {
		got, ok := parseParent([]byte(name))
		if ok && got < 0 {
			t.Errorf("%q: parent %d", name, got)
		}
		// What the kernel writes: a state of one letter, numbers after the name.
		if len(state) != 1 || state[0] < 'A' || state[0] > 'Z' || parent < 0 || strings.ContainsAny(rest, ")") {
			return
		}
		stat := fmt.Sprintf("7 (%s) %s %d %s", name, state, parent, rest)
		if got, ok := parseParent([]byte(stat)); !ok || got != parent {
			t.Errorf("%q: %d, %v", stat, got, ok)
		}
	})
}

func TestDescendants(t *testing.T) {
	alone(t, func(t *testing.T) {
		h := newHouse(t)
		up, wait := h.up()
		pid := h.start(shell("sh -c 'sh -c \"echo up >&3; exec sleep 1000\" & echo up >&3; wait' & echo up >&3; wait", up))
		wait(3)
		below := Descendants(pid)
		if len(below) != 2 {
			t.Fatalf("%d below, want 2: %v", len(below), below)
		}
		for i, p := range below { // parents before children
			parent, ok := parentOf(fmt.Sprint(p))
			if want := append([]int{pid}, below...)[i]; !ok || parent != want {
				t.Errorf("parent of %d is %d, want %d", p, parent, want)
			}
		}
		mine := Descendants(os.Getpid())
		if len(mine) != 3 || !slices.Contains(mine, pid) {
			t.Errorf("%v below skep", mine)
		}
		if got := Descendants(below[1]); len(got) != 0 {
			t.Errorf("%v below a process without children", got)
		}
		if got := Descendants(1 << 22); len(got) != 0 {
			t.Errorf("%v below nobody", got)
		}
	})
}
