// Package peers knows how to start every subject of the benchmark: skep and the
// programs that people use in its place, all serving the same application with
// the same number of workers on a loopback port.
//
// It installs nothing. A subject whose program is missing says which one.
package peers

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"skep/bench/load"
)

//go:embed files
var files embed.FS

// Config is what a row asks of a subject. A subject that has no such setting
// ignores it: the row then measures what happens without.
type Config struct {
	Workers     int
	Env         []string      // for the application, see files/app.py
	StopTimeout time.Duration // to KILL after TERM; the subject's default if zero
	HangTimeout time.Duration // to the replacement of a hung worker; off if zero
	Flags       []string      // further flags, for skep only
	Hello       string        // for skep only: serve this examples/hello, not uvicorn
}

// Subject is one way to serve.
type Subject struct {
	Name   string
	What   string         // one line for the report
	Reload syscall.Signal // what begins a rolling reload, 0 if it has none
	Needs  []string       // tools, by their name in Tools
	argv   func(t *Tools, c Config, port int, dir string) ([]string, error)
}

// Tools has the programs that subjects need.
type Tools struct {
	// Skep is the binary under test.
	Skep string
	// Python is an interpreter that can import uvicorn; /usr/bin/python3 on
	// Debian, where the packages are.
	Python string
	paths  map[string]string // name to path, "" if missing
	vers   map[string]string
}

var versionNumber = regexp.MustCompile(`\d+(\.\d+)+(-[0-9][\w.+~]*)?`)

// FindTools looks for every program once. Nothing missing is an error here.
func FindTools(skep, python string) *Tools {
	t := &Tools{Skep: skep, Python: python, paths: map[string]string{}, vers: map[string]string{}}
	run := func(argv ...string) (string, bool) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		return strings.TrimSpace(string(out)), err == nil
	}
	add := func(name, path string, argv ...string) {
		t.paths[name] = ""
		if path == "" {
			return
		}
		out, ok := run(argv...)
		if v := versionNumber.FindString(out); v != "" {
			t.vers[name] = v
		} else if !ok {
			return
		}
		t.paths[name] = path
	}
	look := func(name string) string { p, _ := exec.LookPath(name); return p }
	for name, flag := range map[string]string{
		"tini": "--version", "dumb-init": "--version", "catatonit": "--version", "node": "--version",
		"supervisord": "--version", "nginx": "-v", "docker": "--version",
	} {
		p := look(name)
		add(name, p, p, flag)
	}
	t.paths["skep"] = ""
	if skep != "" {
		// A build between releases has a commit for a version.
		if out, ok := run(skep, "--version"); ok && out != "" {
			f := strings.Fields(out)
			t.paths["skep"], t.vers["skep"] = skep, f[len(f)-1]
		}
	}
	add("python", python, python, "--version")
	for _, module := range []string{"uvicorn", "gunicorn", "fastapi", "uvloop", "httptools"} {
		add(module, python, python, "-c", "import "+module+" as m; print(m.__version__)")
	}
	// s6 has no version flag; Debian's package manager knows.
	if p := look("s6-svscan"); p != "" {
		t.paths["s6"] = p
		if out, ok := run("dpkg-query", "-W", "-f", "${Version}", "s6"); ok {
			t.vers["s6"] = versionNumber.FindString(out)
		}
	}
	return t
}

// Path returns the path of a tool, "" if it is missing.
func (t *Tools) Path(name string) string { return t.paths[name] }

// Versions returns name to version of the tools that are there.
func (t *Tools) Versions() map[string]string {
	out := map[string]string{}
	for name, p := range t.paths {
		if p != "" {
			out[name] = t.vers[name]
		}
	}
	return out
}

// Missing returns the tools that are not there, in order.
func (t *Tools) Missing() []string {
	var out []string
	for name, p := range t.paths {
		if p == "" {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// MissingTool is the error for a subject whose program is not installed.
type MissingTool struct{ Name string }

func (e *MissingTool) Error() string { return e.Name + " is not installed here" }

// Check returns a *MissingTool for the first tool that the subject lacks.
func (t *Tools) Check(names ...string) error {
	for _, n := range names {
		if t.paths[n] == "" {
			return &MissingTool{n}
		}
	}
	return nil
}

func uvicorn(t *Tools, port int, more ...string) []string {
	return append([]string{t.Python, "-m", "uvicorn", "app:app", "--host", "127.0.0.1",
		"--port", strconv.Itoa(port), "--log-level", "warning", "--no-access-log"}, more...)
}

// SkepFlags returns skep's command line up to the command, for a row that
// starts something other than the application.
func SkepFlags(t *Tools, c Config) []string {
	argv := []string{t.Skep, "-w", strconv.Itoa(c.Workers)}
	if c.StopTimeout > 0 {
		argv = append(argv, "--stop-timeout", c.StopTimeout.String())
	}
	if c.HangTimeout > 0 {
		argv = append(argv, "--hang-timeout", c.HangTimeout.String())
	}
	return append(append(argv, c.Flags...), "--")
}

func skepWith(flags ...string) func(*Tools, Config, int, string) ([]string, error) {
	return func(t *Tools, c Config, port int, _ string) ([]string, error) {
		c.Flags = append(slices.Clone(flags), c.Flags...)
		if c.Hello != "" {
			return append(SkepFlags(t, c), c.Hello, "-addr", fmt.Sprintf("127.0.0.1:%d", port)), nil
		}
		return append(SkepFlags(t, c), uvicorn(t, port)...), nil
	}
}

func gunicorn(class, app string) func(*Tools, Config, int, string) ([]string, error) {
	return func(t *Tools, c Config, port int, _ string) ([]string, error) {
		argv := []string{t.Python, "-m", "gunicorn", "-k", class, "-w", strconv.Itoa(c.Workers),
			"-b", fmt.Sprintf("127.0.0.1:%d", port), "--log-level", "warning"}
		if c.StopTimeout > 0 {
			argv = append(argv, "--graceful-timeout", seconds(c.StopTimeout))
		}
		if c.HangTimeout > 0 {
			argv = append(argv, "--timeout", seconds(c.HangTimeout))
		}
		return append(argv, app), nil
	}
}

func seconds(d time.Duration) string { return strconv.Itoa(int((d + time.Second - 1) / time.Second)) }

// Subjects returns all ways to serve, skep first.
func Subjects() []Subject {
	uv := []string{"python", "uvicorn"}
	return []Subject{
		{Name: "skep", What: "skep before one plain uvicorn command, steering (the default)", Reload: syscall.SIGHUP,
			Needs: append([]string{"skep"}, uv...), argv: skepWith()},
		{Name: "skep hash", What: "skep with --balance hash: the kernel chooses the worker", Reload: syscall.SIGHUP,
			Needs: append([]string{"skep"}, uv...), argv: skepWith("--balance", "hash")},
		{Name: "skep single", What: "skep with --balance single: one socket for all workers", Reload: syscall.SIGHUP,
			Needs: append([]string{"skep"}, uv...), argv: skepWith("--balance", "single")},
		{Name: "skep standby", What: "skep with --standby 1", Reload: syscall.SIGHUP,
			Needs: append([]string{"skep"}, uv...), argv: skepWith("--standby", "1")},
		{Name: "skep ksm", What: "skep with --ksm", Reload: syscall.SIGHUP,
			Needs: append([]string{"skep"}, uv...), argv: skepWith("--ksm")},
		{Name: "plain reuseport", What: "uvicorn processes with a SO_REUSEPORT socket each and no manager", Needs: uv,
			argv: func(t *Tools, c Config, port int, _ string) ([]string, error) {
				return []string{t.Python, "reuseport.py", strconv.Itoa(c.Workers), strconv.Itoa(port)}, nil
			}},
		{Name: "uvicorn --workers", What: "uvicorn's own process manager, one shared socket", Needs: uv,
			argv: func(t *Tools, c Config, port int, _ string) ([]string, error) {
				return uvicorn(t, port, "--workers", strconv.Itoa(c.Workers)), nil
			}},
		{Name: "gunicorn + uvicorn", What: "gunicorn with uvicorn.workers.UvicornWorker, one shared socket", Reload: syscall.SIGHUP,
			Needs: append([]string{"gunicorn"}, uv...), argv: gunicorn("uvicorn.workers.UvicornWorker", "app:app")},
		{Name: "gunicorn sync", What: "gunicorn with its default worker: one request at a time, no keep-alive", Reload: syscall.SIGHUP,
			Needs: []string{"python", "gunicorn"}, argv: gunicorn("sync", "app:wsgi")},
		{Name: "node cluster", What: "node's cluster module: the primary accepts and hands connections out in turn", Needs: []string{"node"},
			argv: func(t *Tools, c Config, port int, _ string) ([]string, error) {
				return []string{t.Path("node"), "cluster.js", strconv.Itoa(c.Workers), strconv.Itoa(port)}, nil
			}},
		{Name: "nginx reuseport", What: "nginx with listen … reuseport; it runs no application code", Reload: syscall.SIGHUP, Needs: []string{"nginx"},
			argv: nginx},
		{Name: "supervisord", What: "supervisord with an fcgi-program: one socket, passed to uvicorn --fd 0",
			Needs: append([]string{"supervisord"}, uv...), argv: supervisord},
	}
}

// Find returns the subject of that name.
func Find(name string) (Subject, bool) {
	for _, s := range Subjects() {
		if s.Name == name {
			return s, true
		}
	}
	return Subject{}, false
}

func nginx(t *Tools, c Config, port int, dir string) ([]string, error) {
	conf := fmt.Sprintf(`daemon off;
worker_processes %d;
pid %s/nginx.pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path %[2]s/body; proxy_temp_path %[2]s/proxy; fastcgi_temp_path %[2]s/fastcgi;
  uwsgi_temp_path %[2]s/uwsgi; scgi_temp_path %[2]s/scgi;
  server {
    listen 127.0.0.1:%[3]d reuseport;
    location / { add_header X-Pid $pid; return 200 "ok"; }
  }
}
`, c.Workers, dir, port)
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		// The workers run as nobody and must find their folders.
		if err := os.Chmod(dir, 0o755); err != nil {
			return nil, err
		}
	}
	return []string{t.Path("nginx"), "-e", "stderr", "-p", dir, "-c", path}, nil
}

func supervisord(t *Tools, c Config, port int, dir string) ([]string, error) {
	wait := 10
	if c.StopTimeout > 0 {
		wait, _ = strconv.Atoi(seconds(c.StopTimeout))
	}
	conf := fmt.Sprintf(`[supervisord]
nodaemon=true
logfile=/dev/null
logfile_maxbytes=0
pidfile=%s/supervisord.pid
loglevel=warn
[fcgi-program:web]
socket=tcp://127.0.0.1:%d
command=%s -m uvicorn app:app --fd 0 --log-level warning --no-access-log
process_name=%%(program_name)s-%%(process_num)d
numprocs=%d
stopwaitsecs=%d
stopasgroup=true
killasgroup=true
directory=%s
`, dir, port, t.Python, c.Workers, wait, dir)
	path := filepath.Join(dir, "supervisord.conf")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	argv := []string{t.Path("supervisord"), "-c", path}
	if os.Geteuid() == 0 {
		argv = append(argv, "-u", "root")
	}
	return argv, nil
}

// Scratch makes a folder with the application's files in it.
func Scratch() (string, error) {
	dir, err := os.MkdirTemp("", "skep-bench-")
	if err != nil {
		return "", err
	}
	entries, err := files.ReadDir("files")
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		b, err := files.ReadFile("files/" + e.Name())
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, e.Name()), b, 0o644); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// FreePort returns a loopback port that was free a moment ago.
func FreePort() (int, error) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

// Server is a started subject.
type Server struct {
	*Process
	Subject Subject
	Addr    netip.AddrPort
}

// Start starts the subject without waiting for it. The caller must call End.
func (s Subject) Start(t *Tools, c Config) (*Server, error) {
	if err := t.Check(s.Needs...); err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	dir, err := Scratch()
	if err != nil {
		return nil, err
	}
	argv, err := s.argv(t, c, port, dir)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	p, err := Launch(dir, argv, c.Env, nil)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
	return &Server{p, s, addr}, nil
}

// Serve starts the subject and waits until every one of its workers has
// answered a request, at most limit. Unlike Start it leaves nothing behind
// when it fails.
func (s Subject) Serve(ctx context.Context, t *Tools, c Config, limit time.Duration) (*Server, error) {
	v, err := s.Start(t, c)
	if err != nil {
		return nil, err
	}
	if err := v.AwaitWorkers(ctx, c.Workers, nil, limit); err != nil {
		v.End()
		return nil, err
	}
	return v, nil
}

// AwaitWorkers waits until n different processes have answered, not counting
// those in except.
func (v *Server) AwaitWorkers(ctx context.Context, n int, except []int, limit time.Duration) error {
	seen := map[int]bool{}
	err := v.WaitFor(ctx, limit, func() bool {
		// Handlers that take a moment keep a worker that is alone on a shared
		// socket from answering everything.
		for _, r := range v.burst(ctx, 4*n, "/block?ms=5") {
			if r.OK() && !slices.Contains(except, r.PID) {
				seen[r.PID] = true
			}
		}
		return len(seen) >= n
	})
	if err != nil && !IsEnded(err) {
		return fmt.Errorf("%d of %d workers answered: %w", len(seen), n, err)
	}
	return err
}

func (v *Server) burst(ctx context.Context, n int, path string) []load.Record {
	plan := make([]load.Arrival, n)
	for i := range plan {
		plan[i] = load.Arrival{At: time.Duration(i) * time.Millisecond, Path: path}
	}
	records, err := load.Run(ctx, load.Options{Address: v.Addr, Timeout: 2 * time.Second}, plan)
	if err != nil {
		return nil
	}
	return records
}

// Answering returns the processes that answer n requests, in no order.
func (v *Server) Answering(ctx context.Context, n int) []int {
	var out []int
	for _, r := range v.burst(ctx, n, "/block?ms=5") {
		if r.OK() && r.PID != 0 && !slices.Contains(out, r.PID) {
			out = append(out, r.PID)
		}
	}
	slices.Sort(out)
	return out
}

// Refused reports whether err says that skep does not know what it was asked
// for: it ended with 125 (bad flags). The text is its own last line.
func Refused(err error) (string, bool) {
	var e *Ended
	if errors.As(err, &e) && e.Code == 125 {
		lines := strings.Split(e.Log, "\n")
		return lines[len(lines)-1], true
	}
	return "", false
}
