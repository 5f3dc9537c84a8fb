// Package vmtest runs a program as the first process of a real kernel: a virtual
// machine with an initramfs made of the files given and nothing else. What cannot be
// had from the kernel of the tests' own machine is there: control groups of version 2
// with every controller, and a process 1 that is nobody's child.
//
// It needs qemu-system-x86_64 and the kernel that scripts/vm.sh fetches. The machine
// is emulated (TCG), which works in containers too.
package vmtest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep/internal/testneed"
)

// Machine is what to boot.
type Machine struct {
	Root   string            // the repository's folder
	Files  map[string]string // programs: name in the machine's root folder to path here
	Args   []string          // of /init, one of Files
	MiB    string            // memory, such as "512"
	Within time.Duration     // it is switched off then; an emulated boot takes some seconds, on a busy machine a minute
}

// Run boots the machine, waits until it switches itself off, and returns what its
// serial console printed. The machine has one processor and no network card.
func Run(t testing.TB, m Machine) (console string) {
	t.Helper()
	qemu := testneed.Program(t, "qemu-system-x86_64")
	kernel := filepath.Join(m.Root, "build", "vm", "vmlinuz")
	if _, err := os.Stat(kernel); err != nil {
		testneed.Skip(t, "needs a kernel to boot at %s (scripts/vm.sh fetches it)", kernel)
	}
	files := []File{{Name: "dev", Mode: 0o40755}, {Name: "proc", Mode: 0o40755}, {Name: "sys", Mode: 0o40755}, {Name: "tmp", Mode: 0o41777}}
	for name, path := range m.Files {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, File{Name: name, Mode: 0o100755, Data: data})
	}
	var archive bytes.Buffer
	if err := WriteArchive(&archive, files); err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), m.Within)
	defer cancel()
	// A panic restarts the machine at once (panic=-1), and with -no-reboot that is
	// its end: so is the end of process 1.
	cmd := exec.CommandContext(ctx, qemu, "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", m.MiB, "-nodefaults", "-no-user-config",
		"-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 rdinit=/init cgroup_no_v1=all -- "+strings.Join(m.Args, " "))
	cmd.WaitDelay = time.Second
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	console = strings.ReplaceAll(out.String(), "\r\n", "\n")
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		t.Fatalf("the machine was not done within %v; its console:\n%s", m.Within, console)
	case err != nil:
		t.Fatalf("cannot run the machine: %v: %s; its console:\n%s", err, complaint.Bytes(), console)
	}
	return console
}
