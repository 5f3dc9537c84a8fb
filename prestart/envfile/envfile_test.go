package envfile

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skep/internal/testneed"
)

// TestMain lets the test binary play a step: it appends its arguments, as lines,
// to the file named by SKEP_ENV.
func TestMain(m *testing.M) {
	if os.Getenv("ENVFILE_TEST_ROLE") == "step" {
		file, err := os.OpenFile(os.Getenv(Variable), os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			_, err = file.WriteString(strings.Join(os.Args[1:], "\n") + "\n")
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// step runs a step that gets the file as the loop gives it.
func step(t *testing.T, f *File, cred *syscall.Credential, lines ...string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", lines...)
	if inherit := f.Inherit(); inherit != nil {
		cmd.ExtraFiles = []*os.File{inherit}
	}
	cmd.Env = []string{"ENVFILE_TEST_ROLE=step", Variable + "=" + f.Path(3)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the step cannot hand over: %v: %s", err, out)
	}
}

func mustRead(t *testing.T, f *File, want ...string) {
	t.Helper()
	got, err := f.Read()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestHandOver: in a folder or in memory, for the own user or another.
func TestHandOver(t *testing.T) {
	for _, place := range []string{"folder", "memory"} {
		for _, user := range []string{"own", "other"} {
			t.Run(place+" "+user, func(t *testing.T) {
				opts := Options{Dirs: []string{}}
				if place == "folder" {
					folder, err := os.MkdirTemp("/tmp", "skep-test-") // t.TempDir is closed to other users
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = os.RemoveAll(folder) })
					if err := os.Chmod(folder, 0o777|os.ModeSticky); err != nil {
						t.Fatal(err)
					}
					opts.Dirs = []string{filepath.Join(folder, "absent"), folder}
				}
				var cred *syscall.Credential
				if user == "other" {
					if os.Geteuid() != 0 {
						testneed.Skip(t, "only root can run a step as another user")
					}
					opts.Switch, opts.UID, opts.GID = true, 65534, 65534
					cred = &syscall.Credential{Uid: 65534, Gid: 65534}
				}
				f, err := Create(opts)
				if err != nil {
					t.Fatal(err)
				}
				path := f.Path(3)
				mustRead(t, f)
				step(t, f, cred, "A=1", "B=x y")
				step(t, f, cred, "A=2")
				mustRead(t, f, "A=1", "B=x y", "A=2")
				if place == "folder" {
					info, err := os.Stat(path)
					if err != nil {
						t.Fatal(err)
					}
					if info.Mode().Perm() != 0o600 || user == "other" && info.Sys().(*syscall.Stat_t).Uid != 65534 {
						t.Errorf("mode %v, owner %d", info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
					}
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(path); place == "folder" && !os.IsNotExist(err) {
					t.Errorf("the file is left: %v", err)
				}
			})
		}
	}
}

// TestOwnFiles: each attempt has a file of its own.
func TestOwnFiles(t *testing.T) {
	opts := Options{Dirs: []string{t.TempDir()}}
	one, err := Create(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	two, err := Create(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer two.Close()
	if one.Path(0) == two.Path(0) {
		t.Fatal("two attempts share a file")
	}
	step(t, one, nil, "A=late")
	mustRead(t, two)
}

// TestMischief: what a step may have made of its file.
func TestMischief(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("A=hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		do   func(path string) error
		want []string
		err  string
	}{
		"removed": {do: os.Remove},
		"replaced": {do: func(path string) error {
			if err := os.WriteFile(path+".new", []byte("A=1"), 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		}, want: []string{"A=1"}},
		"a link": {do: func(path string) error {
			_ = os.Remove(path)
			return os.Symlink(secret, path)
		}, err: "too many levels of symbolic links"},
		"a fifo": {do: func(path string) error {
			_ = os.Remove(path)
			return syscall.Mkfifo(path, 0o600)
		}, err: "no regular file"},
		"endless": {do: func(path string) error { return os.Truncate(path, 1<<40) }, err: "larger than 1048576 bytes"},
		"nonsense": {do: func(path string) error {
			return os.WriteFile(path, []byte("A=1\nhunter2\n"), 0)
		}, err: "cannot use what the step wrote into SKEP_ENV: line 2: no ="},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := Create(Options{Dirs: []string{t.TempDir()}})
			if err != nil {
				t.Fatal(err)
			}
			if err := test.do(f.Path(0)); err != nil {
				t.Fatal(err)
			}
			got, err := f.Read()
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("%v, want %q", err, test.err)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error tells a value: %v", err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestMemoryTooLarge: the bound holds in memory too.
func TestMemoryTooLarge(t *testing.T) {
	f, err := Create(Options{Dirs: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.mem.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read(); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Error(err)
	}
}

// TestCloseOnExec: no child that is not a step gets the memory file.
func TestCloseOnExec(t *testing.T) {
	f, err := Create(Options{Dirs: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, f.mem.Fd(), syscall.F_GETFD, 0)
	if errno != 0 || flags&syscall.FD_CLOEXEC == 0 {
		t.Errorf("flags %x, %v", flags, errno)
	}
}
