package initd

import (
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseNotice(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]notice{
		"READY=1":    {ready: true},
		"READY=1\n":  {ready: true},
		"READY=0":    {},
		"READY=1 ":   {},
		" READY=1":   {},
		"XREADY=1":   {},
		"ready=1":    {},
		"READY=11":   {},
		"STOPPING=1": {stopping: true},
		"WATCHDOG=1": {alive: true},
		"WATCHDOG=trigger\nWATCHDOG=1\nX=2\n=\n\nSTATUS=a=b": {alive: true, trigger: true, status: "a=b"},
		"STATUS=one\nREADY=1\nSTATUS=two":                    {ready: true, status: "two"},
		"STATUS=\xff\nREADY=1":                               {ready: true, status: "?"},
		"STATUS=one\x00\nREADY=1":                            {},
		"READY=1\r\n":                                        {},
		"":                                                   {},
	} {
		if got := parseNotice([]byte(text)); got != want {
			t.Errorf("%q is %+v, want %+v", text, got, want)
		}
	}
}

// The same, found out by another way.
func FuzzParseNotice(f *testing.F) {
	for _, s := range []string{"READY=1", "STATUS=x\nREADY=1\nWATCHDOG=1", "STOPPING=1\n\n", "READY=1\x00", "STATUS=\xff", "WATCHDOG=trigger", strings.Repeat("A=\n", 2000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := parseNotice([]byte(s))
		var want notice
		if !strings.Contains(s, "\x00") {
			lines := strings.Split(s, "\n")
			want.ready, want.stopping = slices.Contains(lines, "READY=1"), slices.Contains(lines, "STOPPING=1")
			want.alive, want.trigger = slices.Contains(lines, "WATCHDOG=1"), slices.Contains(lines, "WATCHDOG=trigger")
			for _, line := range lines {
				if strings.HasPrefix(line, "STATUS=") {
					want.status = strings.ToValidUTF8(line[len("STATUS="):], "?")
				}
			}
		}
		if got != want {
			t.Errorf("%q is %+v, want %+v", s, got, want)
		}
	})
}

// What comes over the socket: text, sender, and no descriptor that is not closed.
func TestNotifySocketReceives(t *testing.T) {
	s, err := newNotifySocket()
	if err != nil {
		t.Fatal(err)
	}
	defer s.file.Close()
	if !strings.HasPrefix(s.name, "@") {
		t.Errorf("the address %q needs a file system", s.name)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrUnix{Name: s.name}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	for _, m := range []struct {
		text   string
		rights []byte
		want   string
	}{
		{"READY=1", nil, "READY=1"},
		{"BARRIER=1", unix.UnixRights(pipe[1]), "BARRIER=1"},
		{strings.Repeat("x", noticeMost) + "\nREADY=1", nil, ""}, // too long
		{"", nil, ""},
	} {
		if err := unix.Sendmsg(fd, []byte(m.text), m.rights, to, 0); err != nil {
			t.Fatal(err)
		}
		b, pid, err := s.receive(make([]byte, noticeMost), make([]byte, 2048))
		if err != nil || string(b) != m.want || pid != os.Getpid() {
			t.Errorf("%q of %d, %v; want %q of %d", b, pid, err, m.want, os.Getpid())
		}
	}
	unix.Close(pipe[1])
	if n, err := unix.Read(pipe[0], make([]byte, 1)); n != 0 || err != nil { // end of file: nobody has the other end
		t.Errorf("read %d, %v: a descriptor that was sent is still open", n, err)
	}
	s.file.Close()
	if _, _, err := s.receive(make([]byte, 10), make([]byte, 10)); err == nil {
		t.Error("a closed socket receives")
	}
}

func TestAncestors(t *testing.T) {
	t.Parallel()
	if got := ancestors(0); got != nil {
		t.Errorf("of a process in another namespace: %v", got)
	}
	if got := ancestors(os.Getpid()); got != nil {
		t.Errorf("of skep itself: %v", got)
	}
	if got := ancestors(os.Getppid()); len(got) == 0 || got[0] != os.Getppid() {
		t.Errorf("of a stranger: %v", got)
	}
}
