package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"skep/internal/dockertest"
	"skep/internal/testneed"
)

// programs is the folder of the small applications that real servers run.
var programs = filepath.Join(root, "e2e", "testdata", "programs")

// python is Debian's own, for which its packages are installed.
func python(t *testing.T, modules ...string) string {
	t.Helper()
	const path = "/usr/bin/python3"
	for _, m := range modules {
		if err := exec.Command(path, "-c", "import "+m).Run(); err != nil {
			testneed.Skip(t, "needs the Python module %s (make deps)", m)
		}
	}
	return path
}

// netty compiles Netty.java against Debian's libnetty-java and returns how to run it.
func netty(t *testing.T) []string {
	t.Helper()
	java := testneed.Program(t, "java")
	var jars []string
	for _, name := range []string{"common", "buffer", "transport", "resolver", "codec"} {
		jar := "/usr/share/java/netty-" + name + ".jar"
		if _, err := os.Stat(jar); err != nil {
			testneed.Skip(t, "needs %s (make deps)", jar)
		}
		jars = append(jars, jar)
	}
	return []string{java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dio.netty.noUnsafe=true", "-cp", strings.Join(jars, ":"),
		filepath.Join(programs, "Netty.java")}
}

// A real server of each kind serves a port with two workers: unmodified, or with the
// descriptor that it knows how to take.
func TestRealServers(t *testing.T) {
	for _, s := range []struct {
		name  string
		flags []string // PORT stands for the port
		// command is the server's own command line, on a port.
		command func(t *testing.T, port string) []string
	}{
		{"netty", nil, func(t *testing.T, port string) []string { return append(netty(t), "127.0.0.1", port) }},
		{"twisted", nil, func(t *testing.T, port string) []string {
			return []string{python(t, "twisted.web"), filepath.Join(programs, "twistedserver.py"), port}
		}},
		{"webrick", nil, func(t *testing.T, port string) []string {
			return []string{testneed.Program(t, "ruby"), filepath.Join(programs, "webrick.rb"), port}
		}},
		{"puma", nil, func(t *testing.T, port string) []string {
			return []string{testneed.Program(t, "puma"), "-b", "tcp://127.0.0.1:" + port, filepath.Join(programs, "config.ru")}
		}},
		{"hypercorn", nil, func(t *testing.T, port string) []string {
			return []string{python(t, "hypercorn"), "-m", "hypercorn", "--bind", "127.0.0.1:" + port, "asgi:app"}
		}},
		{"uvicorn by descriptor", []string{"--listen", "web=127.0.0.1:PORT"}, func(t *testing.T, _ string) []string {
			return []string{python(t, "uvicorn"), "-m", "uvicorn", "--fd", "{fd:web}", "asgi:app"}
		}},
		{"gunicorn by descriptor", []string{"--listen", "127.0.0.1:PORT"}, func(t *testing.T, _ string) []string {
			return []string{python(t, "gunicorn"), "-m", "gunicorn", "-b", "fd://{fd}", "wsgi:app"}
		}},
		{"gunicorn by LISTEN_FDS", []string{"--listen", "127.0.0.1:PORT"}, func(t *testing.T, _ string) []string {
			return []string{python(t, "gunicorn"), "-m", "gunicorn", "wsgi:app"}
		}},
		{"hypercorn by descriptor", []string{"--listen", "127.0.0.1:PORT"}, func(t *testing.T, _ string) []string {
			return []string{python(t, "hypercorn"), "-m", "hypercorn", "--bind", "fd://{fd}", "asgi:app"}
		}},
		{"node by descriptor", []string{"--listen", "127.0.0.1:PORT"}, func(t *testing.T, _ string) []string {
			return []string{testneed.Program(t, "node"), filepath.Join(programs, "server.js"), "fd:{fd}"}
		}},
		{"puma by LISTEN_FDS", []string{"--listen", "127.0.0.1:PORT"}, func(t *testing.T, port string) []string {
			return []string{testneed.Program(t, "puma"), "--bind-to-activated-sockets", "only", filepath.Join(programs, "config.ru")}
		}},
		{"libsystemd by LISTEN_FDS", []string{"--listen", "127.0.0.1:PORT"}, func(t *testing.T, _ string) []string {
			return []string{python(t, "systemd.daemon"), filepath.Join(programs, "activated.py")}
		}},
	} {
		t.Run(s.name, func(t *testing.T) {
			port := freeAddress(t)[len("127.0.0.1:"):]
			flags := []string{"-w", "2"}
			for _, f := range s.flags {
				flags = append(flags, strings.ReplaceAll(f, "PORT", port))
			}
			said := runSkep(t, flags, s.command(t, port)...)
			url := "http://127.0.0.1:" + port + "/"
			waitFor(t, url, 60*time.Second, "2 workers", func(seen []request) bool { return len(pids(seen)) == 2 })
			ready(t, said, 2) // one that is alone in that gets everything
			requests := askMany(url, 100)
			if err := spread(requests, 2); err != nil {
				t.Error(err)
			}
			for _, word := range []string{"cannot be shared", "cannot steer", "going on with one worker"} {
				if strings.Contains(said(), word) {
					t.Errorf("skep says %q", word)
				}
			}
		})
	}
}

// Servers that stop listening and live on: with shutdown(2), which takes the held
// socket out of the choice, and close(2), after which nobody would accept. New
// connections go to the other worker, queued ones wait for the successor.
func TestServersThatStopListening(t *testing.T) {
	for _, s := range []struct {
		name    string
		command func(t *testing.T, port string) []string
	}{
		{"twisted", func(t *testing.T, port string) []string {
			return []string{python(t, "twisted.web"), filepath.Join(programs, "twistedserver.py"), port}
		}},
		{"webrick", func(t *testing.T, port string) []string {
			return []string{testneed.Program(t, "ruby"), filepath.Join(programs, "webrick.rb"), port}
		}},
	} {
		t.Run(s.name, func(t *testing.T) {
			address := freeAddress(t)
			said := runSkep(t, []string{"-w", "2"}, s.command(t, address[len("127.0.0.1:"):])...)
			url := "http://" + address
			waitFor(t, url, 60*time.Second, "2 workers", func(seen []request) bool { return len(pids(seen)) == 2 })
			r := ask(t.Context(), url+"/close")
			if r.err != nil {
				t.Fatal(r.err)
			}
			const lives = "closed its listener and lives on"
			answers := make(chan request, 10_000)
			asked := 0
			send := func() {
				asked++
				go func() { answers <- ask(t.Context(), url) }()
			}
			for deadline := time.Now().Add(30 * time.Second); !strings.Contains(said(), lives); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) || asked == cap(answers)/2 {
					t.Fatalf("after %d connections skep does not notice", asked)
				}
				send()
			}
			if !strings.Contains(said(), "a worker shut down a shared socket; listening again") {
				t.Error("skep does not say that the socket was shut down")
			}
			// From the next turn of the poller on nothing is given to it.
			waitFor(t, url, 30*time.Second, "50 answers of the other worker in turn", func(seen []request) bool {
				return len(seen) >= 50 && pids(seen[len(seen)-50:])[r.pid] == 0 && len(pids(seen[len(seen)-50:])) == 1
			})
			kill(t, strconv.Itoa(r.pid))
			counts := map[int]int{}
			for range asked {
				// What was queued when it shut the socket down was reset.
				if a := <-answers; a.err == nil {
					counts[a.pid]++
				} else if !strings.Contains(a.err.Error(), "reset") && !strings.Contains(a.err.Error(), "EOF") {
					t.Errorf("not answered: %v", a.err)
				}
			}
			t.Logf("answers by pid: %v; %d had closed", counts, r.pid)
			if counts[r.pid] > 1 || len(counts) < 2 {
				t.Errorf("answers by pid: %v; want the other worker and the successor of %d", counts, r.pid)
			}
		})
	}
}

// A new worker that opens a file for itself is not taken for a busier one than the others, which have had theirs for long: of requests one after the other it gets its
// share. The test can fail while such a file counts as a connection for 200 ms, which is longer than they take.
func TestNewWorkerGetsItsShare(t *testing.T) {
	address := freeAddress(t)
	url := "http://" + address
	const many = 4
	said := runSkep(t, []string{"-w", strconv.Itoa(many)}, python(t), filepath.Join(programs, "latefile.py"), address[len("127.0.0.1:"):])
	ready(t, said, many)
	began := time.Now()
	old := map[int]int{}
	waitFor(t, url, 30*time.Second, "half a second of answers by all", func(seen []request) bool {
		old = pids(seen)
		return len(old) == many && time.Since(began) > 500*time.Millisecond
	})
	for pid := range old {
		kill(t, strconv.Itoa(pid))
		break
	}
	waitFor(t, url, 30*time.Second, "an answer of the new worker", func(seen []request) bool { return old[seen[len(seen)-1].pid] == 0 })
	requests := make([]request, 100)
	for i := range requests {
		requests[i] = ask(t.Context(), url)
	}
	t.Logf("answers by pid: %v", pids(requests))
	if err := spread(requests, many); err != nil {
		t.Error(err)
	}
}

// Real servers, unmodified, on one port with four workers, in what a container may by
// default and in one that may nothing. One container has them all, one after
// another: without a layered file system each container costs as much as ten servers.
func TestRealServersInContainers(t *testing.T) {
	image := serversImage(t)
	const many = 4
	servers := []struct{ name, command string }{
		{"uvicorn on asyncio", "uvicorn app:app --host 0.0.0.0 --loop asyncio --port"},
		{"uvicorn on uvloop", "uvicorn app:app --host 0.0.0.0 --loop uvloop --port"},
		// Its heartbeat file needs a place to be written.
		{"gunicorn sync", "gunicorn --chdir /programs --worker-tmp-dir /dev/shm wsgi:app -b 0.0.0.0:"},
		{"node", "node /programs/server.js"},
		{"python -m http.server", "python3 -m http.server --directory /proc/self/task"},
		{"java", "java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC /programs/Serve.java"},
		{"go", "/hello -addr :"},
	}
	for _, profile := range []struct {
		name  string
		flags []string
	}{
		{"default", nil},
		{"hardest", []string{"--read-only", "--user=1000", "--cap-drop=ALL", "--security-opt=no-new-privileges"}},
	} {
		t.Run(profile.name, func(t *testing.T) {
			const first = 8001
			var ports []int
			for i := range servers {
				ports = append(ports, first+i)
			}
			c := dockertest.Run(t, dockertest.Options{
				Image:   image,
				Flags:   append([]string{"--memory=1g", "--volume=" + programs + ":/programs:ro"}, profile.flags...),
				Args:    []string{"sleep", "3600"},
				Publish: ports,
			})
			for i, s := range servers {
				t.Run(s.name, func(t *testing.T) {
					command := s.command
					if !strings.HasSuffix(command, ":") {
						command += " "
					}
					script := fmt.Sprintf("/skep -w %d -- %s%d >/dev/shm/log 2>&1 & echo $!", many, command, ports[i])
					pid := strings.TrimSpace(c.Exec("sh", "-c", script).Stdout)
					t.Cleanup(func() {
						if t.Failed() {
							t.Log(c.Exec("cat", "/dev/shm/log").Stdout)
						}
						c.Exec("sh", "-c", "kill "+pid)
					})
					url := c.URL(ports[i]) + "/"
					waitFor(t, url, 90*time.Second, fmt.Sprint(many, " workers"), func(seen []request) bool { return len(pids(seen)) == many })
					ready(t, func() string { return c.Exec("cat", "/dev/shm/log").Stdout }, many)
					requests := askMany(url, 200)
					t.Logf("answers by pid: %v", pids(requests))
					if err := spread(requests, many); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

// A port below 1024 is skep's to bind, and the workers that serve it are another
// user's, for whom the kernel would refuse it. Either way of sharing does.
func TestPrivilegedPort(t *testing.T) {
	image := serversImage(t)
	// The engine lets everybody have such ports otherwise.
	flags := []string{"--memory=512m", "--sysctl=net.ipv4.ip_unprivileged_port_start=1024", "--volume=" + programs + ":/programs:ro", "--entrypoint=/skep"}
	for _, s := range []struct {
		name string
		args []string
	}{
		{"bind", []string{"-w", "2", "--user", "1000", "--", "/hello", "-addr", ":80"}},
		{"fds", []string{"-w", "2", "--user", "1000", "--listen", "web=:80", "--", "node", "/programs/server.js", "fd:{fd:web}"}},
	} {
		t.Run(s.name, func(t *testing.T) {
			c := dockertest.Run(t, dockertest.Options{Image: image, Flags: flags, Args: s.args, Publish: []int{80}})
			url := c.URL(80) + "/"
			waitFor(t, url, 60*time.Second, "2 workers", func(seen []request) bool { return len(pids(seen)) == 2 })
			for pid := range pids(askMany(url, 50)) {
				uid := c.Exec("sh", "-c", fmt.Sprintf("sed -n 's/^Uid:\\t\\([0-9]*\\).*/\\1/p' /proc/%d/status", pid)).Stdout
				if strings.TrimSpace(uid) != "1000" {
					t.Errorf("worker %d runs as %q", pid, uid)
				}
			}
			c.WaitLog("worker ready", 2, 60*time.Second)
			if strings.Contains(c.Logs(), "cannot be shared") {
				t.Error(c.Logs())
			}
		})
	}
	// The same without skep's help is refused.
	r := dockertest.Once(t, dockertest.Options{Image: image, Flags: append(flags, "--user=1000"), Args: []string{"--mode", "init", "--", "/hello", "-addr", ":80"}})
	if r.Code == 0 || !strings.Contains(r.Stderr, "permission denied") {
		t.Errorf("exit code %d: %s", r.Code, r.Stderr)
	}
}

// A Java server uses all CPUs by itself: with nothing said it stays alone, and one
// line says why and what decides otherwise.
func TestJavaStaysAlone(t *testing.T) {
	java := testneed.Program(t, "java")
	address := freeAddress(t)
	said := runSkep(t, nil, java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", filepath.Join(programs, "Serve.java"), address[len("127.0.0.1:"):])
	waitFor(t, "http://"+address, 60*time.Second, "an answer", func(seen []request) bool { return len(pids(seen)) == 1 })
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(said(), "running one process"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("skep does not say that it runs one process")
		}
	}
	if !strings.Contains(said(), "java uses all CPUs by itself; -w N") {
		t.Error(said())
	}
}
