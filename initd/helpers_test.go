package initd

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/internal/testneed"
	"skep/launch"
	"skep/port"
)

func TestExpand(t *testing.T) {
	t.Parallel()
	listen := []Listen{{Name: ""}, {Name: "web"}, {Name: "web"}, {Name: "a{b"}}
	for arg, want := range map[string]string{
		"": "", "plain": "plain", "{fd}": "3", "fd://{fd}": "fd://3", "{fd:web}": "4", "{fd:a{b}": "6", "{slot}": "7", "{workers}": "9",
		"{slot}{workers}-{slot}": "79-7", "{": "{", "}": "}", "{}": "{}", "{fd": "{fd", "{slots}": "{slots}", "{ slot}": "{ slot}",
		"{{slot}}": "{7}", "{x{slot}": "{x7", `{"a": {"b": {slot}}}`: `{"a": {"b": 7}}`, "${HOME}": "${HOME}", "{SLOT}": "{SLOT}", "{fd:web}x{fd}": "4x3",
		"a{slot}b{": "a7b{", "{slot": "{slot", "{\x00slot}": "{\x00slot}",
	} {
		if got, err := Expand(arg, listen, 7, 9); err != nil || got != want {
			t.Errorf("%q is %q, %v; want %q", arg, got, err, want)
		}
	}
	for arg, words := range map[string]string{"{fd:}": "{fd:}", "x{fd:admin}": "--listen admin=ADDR"} {
		if got, err := Expand(arg, listen, 0, 1); err == nil || got != "" || !strings.Contains(err.Error(), words) {
			t.Errorf("%q is %q, %v", arg, got, err)
		}
	}
	if got, err := Expand("a{fd}", nil, 0, 1); err == nil || got != "" || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("{fd} without a listener is %q, %v", got, err)
	}
	if got, err := Expand("{fd}{", listen[:1], 0, 1); err != nil || got != "3{" {
		t.Errorf("%q, %v", got, err)
	}
}

func FuzzExpand(f *testing.F) {
	for _, seed := range []string{"{fd}", "{fd:web}", "{{slot}", "{workers", "}{", "", "{fd:", "{\xff}"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, arg string) {
		got, err := Expand(arg, []Listen{{Name: "web"}}, 5, 6)
		if err != nil {
			if got != "" || !strings.Contains(arg, "{fd:") {
				t.Fatalf("%q: %q, %v", arg, got, err)
			}
			return
		}
		// The same by another way: what is known is replaced, everything else stays.
		want := strings.NewReplacer("{fd}", "3", "{fd:web}", "3", "{slot}", "5", "{workers}", "6").Replace(arg)
		if got != want {
			t.Fatalf("%q is %q, want %q", arg, got, want)
		}
	})
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	base := []string{"A=1", "LISTEN_FDS=9", "LISTEN_PID=1", "LISTEN_FDNAMES=x", "NOTIFY_SOCKET=/run/n", "WATCHDOG_USEC=5", "WATCHDOG_PID=1", "SKEP_ENV=/x", "SKEP_SLOT=old",
		"WEB_CONCURRENCY=8", "A=2", "LISTEN_FDSX=1", "=weird", "bare", "XLISTEN_PID=1"}
	kept := []string{"A=1", "SKEP_SLOT=old", "WEB_CONCURRENCY=8", "A=2", "LISTEN_FDSX=1", "=weird", "bare", "XLISTEN_PID=1"}
	if got := environment(base, nil); !slices.Equal(got, kept) {
		t.Errorf("\n got %q\nwant %q", got, kept)
	}
	set := map[string]string{"SKEP_SLOT": "2", "SKEP_WORKER_COUNT": "3", "WEB_CONCURRENCY": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "unknown",
		"NOTIFY_SOCKET": "@1", "WATCHDOG_USEC": "7"}
	want := []string{"A=1", "A=2", "LISTEN_FDSX=1", "=weird", "bare", "XLISTEN_PID=1",
		"SKEP_SLOT=2", "SKEP_WORKER_COUNT=3", "WEB_CONCURRENCY=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=unknown", "NOTIFY_SOCKET=@1", "WATCHDOG_USEC=7"}
	if got := environment(base, set); !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
	if base[1] != "LISTEN_FDS=9" {
		t.Error("the environment it was given has changed")
	}
	if got := variable([]string{"AB=1", "A=2", "A=3"}, "A"); got != "2" {
		t.Errorf("variable is %q", got)
	}
	if got := variable(nil, "A"); got != "" {
		t.Errorf("variable is %q", got)
	}
}

func TestFindUser(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nbroken\nbad:x:zero:0\nwww-data:x:33:34:www:/:/bin/sh\n1001:x:7:8::/:\nwww-data:x:99:99\nhuge:x:4294967295:1\nlast:x:50:51",
		"/etc/group":  "root:x:0:\nwww:x:34:www-data\nlogs:x:4:a,www-data,b\nbroken:x\nbad:x:x:www-data\nempty:x:60:\nwww-datax:x:61:www-datax\nnobody:x:4294967295:www-data",
	}
	none := map[string]string{}
	for _, c := range []struct {
		text  string
		files map[string]string
		want  *launch.User
		fails string
	}{
		{"www-data", files, &launch.User{UID: 33, GID: 34, Groups: []uint32{34, 4}}, ""},
		{"33", files, &launch.User{UID: 33, GID: 34, Groups: []uint32{34, 4}}, ""},
		{"www-data:logs", files, &launch.User{UID: 33, GID: 4}, ""},
		{"www-data:4", files, &launch.User{UID: 33, GID: 4}, ""},
		{"www-data:77", files, &launch.User{UID: 33, GID: 77}, ""},
		{"33:logs", files, &launch.User{UID: 33, GID: 4}, ""},
		{"root", files, &launch.User{}, ""},
		{"0", files, &launch.User{}, ""},
		{"last", files, &launch.User{UID: 50, GID: 51}, ""},
		{"1001", files, &launch.User{UID: 1001, GID: 1001}, ""}, // a number is an id, not a name
		{"1000", none, &launch.User{UID: 1000, GID: 1000}, ""},
		{"1000:5", none, &launch.User{UID: 1000, GID: 5}, ""},
		{"4294967294", none, &launch.User{UID: 4294967294, GID: 4294967294}, ""},
		{"4294967295", files, nil, "no user"}, // (uid_t)-1 would change nothing
		{"huge", files, nil, "no user"},
		{"33:4294967295", files, nil, "no group"},
		{"www-data:nobody", files, nil, "no group"},
		{"-1", files, nil, "no user"},
		{"4294967296", files, nil, "no user"},
		{"bad", files, nil, "no user"},
		{"broken", files, nil, "no user"},
		{"nobody", files, nil, "no user"},
		{"www-data", none, nil, "no user"},
		{"33:nogroup", files, nil, "no group"},
		{"33:", files, nil, "no group"},
		{":4", files, nil, "before the colon"},
		{":", none, nil, "before the colon"},
		{"a:b:c", files, nil, "no user"},
	} {
		got, err := findUser(c.text, func(name string) string { return c.files[name] })
		if c.fails != "" {
			if got != nil || err == nil || !strings.Contains(err.Error(), c.fails) || !strings.Contains(err.Error(), strconv.Quote(c.text)+" for --user") {
				t.Errorf("%q is %+v, %v; want %q", c.text, got, err, c.fails)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q is %+v, %v; want %+v", c.text, got, err, c.want)
		}
	}
	if u, err := lookupUser(""); u != nil || err != nil {
		t.Errorf("no user is %v, %v", u, err)
	}
	if u, err := lookupUser("0"); err != nil || u.UID != 0 || u.GID != 0 {
		t.Errorf("user 0 is %v, %v", u, err)
	}
}

func FuzzFindUser(f *testing.F) {
	f.Add("www-data:logs", "www-data:x:1:2::", "logs:x:3:www-data")
	f.Add("0", "", "::::\n:::")
	f.Fuzz(func(t *testing.T, text, passwd, group string) {
		u, err := findUser(text, func(name string) string {
			if name == "/etc/passwd" {
				return passwd
			}
			return group
		})
		if (u == nil) == (err == nil) {
			t.Fatalf("%v, %v", u, err)
		}
		if u != nil && (u.UID == 1<<32-1 || u.GID == 1<<32-1 || slices.Contains(u.Groups, 1<<32-1)) {
			t.Fatalf("%q is %+v: -1 means no change", text, u)
		}
	})
}

const patience = 30 * time.Second

// spawnUp starts a program and waits until it has said "up".
func spawnUp(t *testing.T, path string, args ...string) int {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
	})
	if f, ok := out.(*os.File); ok {
		_ = f.SetReadDeadline(time.Now().Add(patience))
	}
	if _, err := fmt.Fscan(out, new(string)); err != nil {
		t.Fatalf("%s %q did not come up: %v", path, args, err)
	}
	return cmd.Process.Pid
}

// Why one process is all that a command wants, by processes that are so.
func TestLoner(t *testing.T) {
	t.Parallel()
	sh := testneed.Program(t, "sh")
	testneed.Program(t, "flock")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	at := func(text string) port.Addr {
		a := netip.MustParseAddrPort(text)
		network := port.IPv4
		if a.Addr().Is6() {
			network = port.IPv6
		}
		return port.Addr{Network: network, IP: a.Addr(), Port: a.Port()}
	}
	everywhere := []port.Addr{at("0.0.0.0:80")}
	plain := spawnUp(t, sh, "-c", "echo up; exec sleep 1000")
	lock := filepath.Join(t.TempDir(), "lock")
	for _, c := range []struct {
		name    string
		pid     int
		addrs   []port.Addr
		foreign []port.Foreign
		want    string // "" is none
	}{
		{"a plain server", plain, everywhere, nil, ""},
		{"two ports, both shared", plain, []port.Addr{at("0.0.0.0:80"), at("127.0.0.1:81")}, nil, ""},
		{"loopback", plain, []port.Addr{at("127.0.0.1:80")}, nil, "loopback"},
		{"loopback of both families", plain, []port.Addr{at("127.5.5.5:80"), at("[::1]:80"), at("[::ffff:127.0.0.1]:80")}, nil, "loopback"},
		{"UDP", plain, everywhere, []port.Foreign{{Kind: port.KindUDP}}, "UDP"},
		{"a unix socket", plain, everywhere, []port.Foreign{{Kind: port.KindUnix}}, "unix"},
		{"children", spawnUp(t, sh, "-c", "sleep 1000 & echo up; wait"), everywhere, nil, "--export-workers"},
		{"a lock", spawnUp(t, sh, "-c", "exec 9>"+lock+"; flock 9; echo up; exec sleep 1000"), everywhere, nil, "locks"},
		{"a runtime for all CPUs", spawnUp(t, self, "role:idle"), everywhere, nil, "go uses"},
		{"another port", spawnUp(t, self, "role:listen"), everywhere, nil, "besides"},
		{"gone", 1 << 22, everywhere, nil, ""},
	} {
		why := loner(c.pid, c.addrs, c.foreign)
		if c.want == "" && why != "" || !strings.Contains(why, c.want) {
			t.Errorf("%s: %q, want %q", c.name, why, c.want)
		}
		if why != "" && (strings.Contains(why, "\n") || !strings.Contains(why, "-w N")) {
			t.Errorf("%s: %q does not say which flag decides otherwise", c.name, why)
		}
	}
}

// The loop hands levels from one package to the other as numbers.
func TestLevelsAgree(t *testing.T) {
	t.Parallel()
	for from, to := range map[supervise.Level]logger.Level{
		supervise.Debug: logger.Debug, supervise.Info: logger.Info, supervise.Warn: logger.Warn, supervise.Error: logger.Error,
	} {
		if logger.Level(from) != to {
			t.Errorf("level %d is %v", from, logger.Level(from))
		}
	}
}
