// Guest is the first process of the virtual machines that tests boot. It mounts what
// a system mounts, starts its own second half, which tries things and prints what
// came of them, and becomes skep: the kernel's own process 1.
//
//	init SCENARIO
//
// Lines for the test begin with "vm: ".
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long anything may take in here: the machine is emulated, on one
// that does other things as well.
const patience = 90 * time.Second

const (
	cgroups = "/sys/fs/cgroup"
	url     = "http://127.0.0.1:8000"
)

// scenario is what one machine is for.
type scenario struct {
	group  string            // skep's own below cgroups; empty for the root
	limits map[string]string // files below cgroups
	skep   []string
	try    func()
}

var scenarios = map[string]scenario{
	"machine": {skep: []string{"-w", "auto", "--workers-per-cpu", "3", "--stop-timeout", "30s", "--", "/hold", "-mib", "20"}, try: machine},
	"leak": {
		group:  "pod/app",
		limits: map[string]string{"pod/memory.max": "512M", "pod/app/memory.max": "192M", "pod/app/memory.oom.group": "1"},
		skep:   []string{"-w", "auto", "--workers-per-cpu", "2", "--", "/hold", "-mib", "20"},
		try:    leak,
	},
	"limits": {
		group:  "pod/app",
		limits: map[string]string{"pod/memory.max": "256M", "pod/app/memory.max": "1G"},
		skep:   []string{"-w", "auto", "--workers-per-cpu", "4", "--", "/hold", "-mib", "20"},
		try:    limits,
	},
}

func main() {
	defer func() {
		if fault := recover(); fault != nil {
			say("failed: %v", fault)
			off()
		}
	}()
	name := os.Args[len(os.Args)-1]
	switch name {
	case "leave": // a child behind, and print its number
		orphan := exec.Command("/proc/self/exe", "end")
		must(orphan.Start())
		fmt.Print(orphan.Process.Pid)
		return
	case "end":
		return
	}
	s, ok := scenarios[name]
	if !ok {
		panic("no scenario " + strconv.Quote(name))
	}
	if os.Getpid() != 1 {
		s.try()
		off()
	}
	mount()
	must(os.MkdirAll(filepath.Join(cgroups, s.group), 0o755))
	if s.group != "" {
		// From the top: what a folder does not pass on, those below it cannot either.
		at := cgroups
		for _, part := range strings.Split(s.group, "/") {
			write(at+"/cgroup.subtree_control", "+memory")
			at += "/" + part
		}
	}
	for file, value := range s.limits {
		write(filepath.Join(cgroups, file), value)
	}
	second := exec.Command("/proc/self/exe", name)
	second.Stdout, second.Stderr = os.Stdout, os.Stderr
	must(second.Start()) // before the move: it stays in the root group
	if s.group != "" {
		write(filepath.Join(cgroups, s.group, "cgroup.procs"), "1")
	}
	must(syscall.Exec("/skep", append([]string{"skep"}, s.skep...), []string{"PATH=/", "HOME=/"}))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func write(name, value string) { must(os.WriteFile(name, []byte(value), 0)) }

func say(format string, args ...any) { fmt.Printf("vm: "+format+"\n", args...) }

// off ends the machine.
func off() {
	unix.Sync()
	must(unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
}

func mount() {
	for _, m := range [][3]string{{"devtmpfs", "/dev", ""}, {"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"cgroup2", cgroups, ""}, {"tmpfs", "/tmp", ""}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, m[2]); err != nil && err != unix.EBUSY {
			panic("cannot mount " + m[1] + ": " + err.Error())
		}
	}
	// ip link set lo up (netdevice(7))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(err)
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	must(err)
	req.SetUint16(unix.IFF_UP)
	must(unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req))
}

// workers lists the processes that run hold.
func workers() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		text, _ := os.ReadFile(name)
		if bytes.HasPrefix(text, []byte("/hold\x00")) {
			pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// until waits for a fact and returns how long it took.
func until(what string, fact func() bool) time.Duration {
	began := time.Now()
	for !fact() {
		if time.Since(began) > patience {
			panic("not seen within " + patience.String() + ": " + what + "; workers " + fmt.Sprint(workers()))
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(began)
}

func untilWorkers(n int) time.Duration {
	return until(strconv.Itoa(n)+" workers", func() bool { return len(workers()) == n })
}

var client = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}

var pidIn = regexp.MustCompile(`pid (\d+)`)

// get makes one request and returns the pid of the worker that answered.
func get(path string) (int, error) {
	resp, err := client.Get(url + path)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	m := pidIn.FindSubmatch(text)
	if resp.StatusCode != http.StatusOK || m == nil {
		return 0, fmt.Errorf("status %s: %.100q", resp.Status, text)
	}
	return strconv.Atoi(string(m[1]))
}

// serving waits for the first answer.
func serving() {
	until("an answer", func() bool {
		conn, err := net.DialTimeout("tcp", "127.0.0.1:8000", time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// load makes requests at a steady pace, whether or not earlier ones have been
// answered, until the function that it returns is called, and then says how many
// failed.
func load() (stop func()) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	count, failed := 0, error(nil)
	failures := 0
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			count++
			wg.Go(func() {
				if _, err := get("/"); err != nil {
					mu.Lock()
					defer mu.Unlock()
					failures, failed = failures+1, err
				}
			})
		}
	}()
	return func() {
		close(end)
		<-ended
		wg.Wait()
		say("requests=%d failed=%d last=%v", count, failures, failed)
	}
}

// event reads one number of memory.events.
func event(group, name string) int {
	text, err := os.ReadFile(filepath.Join(cgroups, group, "memory.events"))
	must(err)
	for line := range strings.Lines(string(text)) {
		if key, value, _ := strings.Cut(strings.TrimSpace(line), " "); key == name {
			n, err := strconv.Atoi(value)
			must(err)
			return n
		}
	}
	panic("no " + name + " in memory.events of " + group)
}

// machine has no limit but the machine's own memory and processor. It shows what
// only the kernel's process 1 has to do: take in orphans, replace workers, end.
func machine() {
	serving()
	say("replicated after %v", untilWorkers(3))
	before := workers()
	must(syscall.Kill(before[0], syscall.SIGKILL))
	until("a replacement", func() bool {
		now := workers()
		return len(now) == 3 && !slices.Contains(now, before[0])
	})
	say("replaced a killed worker")

	// An orphan: what a shell leaves in the background. Nobody but process 1 can
	// wait for it.
	child, err := exec.Command("/proc/self/exe", "leave").Output()
	must(err)
	until("the orphan is waited for", func() bool { return !there("/proc/" + string(child)) })
	say("took in an orphan")
	say("score skep=%s worker=%s", read("/proc/1/oom_score_adj"), read(fmt.Sprintf("/proc/%d/oom_score_adj", workers()[0])))
	must(syscall.Kill(1, syscall.SIGTERM))
	select {} // the kernel ends the machine with its process 1
}

func read(name string) string {
	text, err := os.ReadFile(name)
	must(err)
	return strings.TrimSpace(string(text))
}

// leak has one worker grow by 5 MiB a second, in a group that the kernel would kill
// as a whole.
func leak() {
	serving()
	untilWorkers(2)
	stop := load()
	leaker, err := get("/leak?mib=5")
	must(err)
	took := until("the worker that leaks is gone", func() bool { return !slices.Contains(workers(), leaker) })
	untilWorkers(2)
	stop()
	say("recycled after %v", took)
	say("oom=%d oom_kill=%d", event("pod/app", "oom"), event("pod/app", "oom_kill"))
}

// limits changes the limit by every file that has one.
func limits() {
	serving()
	say("4 workers after %v", untilWorkers(4))
	stop := load()
	for _, change := range []struct {
		file, value string
		workers     int
	}{
		{"pod/memory.max", "128M", 3},     // the parent's, halved
		{"pod/memory.max", "256M", 4},     // and doubled
		{"pod/app/memory.max", "128M", 3}, // the own one
		{"pod/app/memory.max", "max", 4},
		{"pod/app/memory.high", "100M", 2}, // over it the kernel slows the group down
		{"pod/app/memory.high", "max", 4},
	} {
		write(filepath.Join(cgroups, change.file), change.value)
		say("%s=%s: %d workers after %v", change.file, change.value, change.workers, untilWorkers(change.workers).Round(time.Millisecond))
	}
	stop()
	say("oom_kill=%d", event("pod", "oom_kill"))
}
