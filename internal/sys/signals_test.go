package sys

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"skep/internal/testneed"
)

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]int{
		"TERM": 15, "SIGTERM": 15, "term": 15, "sigTerm": 15, "15": 15, "1": 1, "64": 64, "32": 32, "015": 15,
		"RTMIN": 34, "SIGRTMIN": 34, "RTMIN+3": 37, "SIGRTMIN+3": 37, "rtmin+30": 64, "37": 37,
		"RTMAX": 64, "RTMAX-0": 64, "RTMAX-14": 50, "SIGRTMAX-30": 34,
		"IOT": 6, "CLD": 17, "POLL": 29, "SIGPOLL": 29, "STKFLT": 16, "PWR": 30, "SYS": 31, "UNUSED": 31,
	} {
		if got, err := ParseSignal(text); err != nil || got != want {
			t.Errorf("ParseSignal(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "SIG", "0", "65", "-1", "+1", "255", "256", "99999999999999999999", "FOO", "SIGSIGTERM", "TERM ", " TERM", "15 ", "0x0f",
		"RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMAX-31", "RTMIN+", "RTMIN+-1", "RTMIN+a", "RTMINX",
	} {
		if got, err := ParseSignal(text); err == nil {
			t.Errorf("ParseSignal(%q) = %d, want an error", text, got)
		} else if !strings.Contains(err.Error(), strconv.Quote(text)) {
			t.Errorf("ParseSignal(%q): the error does not name the text: %v", text, err)
		}
	}
}

func TestSignalNameIsReadBack(t *testing.T) {
	for n := 1; n <= SigMax; n++ {
		if got, err := ParseSignal(SignalName(n)); err != nil || got != n {
			t.Errorf("ParseSignal(SignalName(%d) = %q) = %d, %v", n, SignalName(n), got, err)
		}
	}
	for n, want := range map[int]string{0: "0", -1: "-1", 65: "65", 32: "32", 33: "33", 34: "RTMIN", 37: "RTMIN+3", 49: "RTMIN+15", 50: "RTMAX-14", 64: "RTMAX"} {
		if got := SignalName(n); got != want {
			t.Errorf("SignalName(%d) = %q, want %q", n, got, want)
		}
	}
}

// The shell's own names are the check on the table: a name that bash gives to a number must be ours too.
func TestSignalNamesAreBash(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		testneed.Skip(t, "no bash to compare with")
	}
	for n := 1; n <= SigMax; n++ {
		out, err := exec.Command(bash, "-c", "kill -l "+strconv.Itoa(n)).Output()
		if err != nil {
			t.Fatal(err)
		}
		want := strings.TrimSpace(string(out))
		if want == "" { // 32 and 33
			want = strconv.Itoa(n)
		}
		if got := SignalName(n); got != want {
			t.Errorf("SignalName(%d) = %q, bash says %q", n, got, want)
		}
	}
}

func FuzzParseSignal(f *testing.F) {
	for _, seed := range []string{"TERM", "SIGRTMIN+3", "RTMAX-14", "15", "0", "", "RTMIN+", "-9"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ParseSignal(text)
		if err != nil {
			if n != 0 {
				t.Fatalf("ParseSignal(%q) = %d with error %v", text, n, err)
			}
			return
		}
		if n < 1 || n > SigMax {
			t.Fatalf("ParseSignal(%q) = %d is out of range", text, n)
		}
		if again, err := ParseSignal(SignalName(n)); err != nil || again != n {
			t.Fatalf("%q is %d, its name %q reads back as %d, %v", text, n, SignalName(n), again, err)
		}
	})
}
