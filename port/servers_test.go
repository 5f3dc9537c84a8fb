package port_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"skep/launch"
	"skep/port"
)

// Unmodified servers of every kind the machine has, three copies on one port.

const nodeServer = `
const http = require('http');
http.createServer((q, r) => r.end('pid ' + process.pid + '\n')).listen(+process.argv[2]);
`

const javaServer = `
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
public class Serve {
	public static void main(String[] args) throws Exception {
		HttpServer s = HttpServer.create(new InetSocketAddress(Integer.parseInt(args[0])), 0);
		byte[] body = ("pid " + ProcessHandle.current().pid() + "\n").getBytes();
		s.createContext("/", x -> { x.sendResponseHeaders(200, body.length); x.getResponseBody().write(body); x.close(); });
		s.start();
	}
}
`

// pythonServer is python3 -m http.server with a page that names the process; the module's own listening code is unmodified.
const pythonServer = `
import os, sys, http.server
class H(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        body = b"pid %d\n" % os.getpid()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
http.server.test(HandlerClass=H, ServerClass=http.server.ThreadingHTTPServer, port=int(sys.argv[1]), bind=None)
`

func TestUnmodifiedServersShareOnePort(t *testing.T) {
	for _, server := range []struct {
		name    string
		copies  int
		command func(t *testing.T, port int) ([]string, []func(*launch.Command))
	}{
		{"python", 3, func(t *testing.T, n int) ([]string, []func(*launch.Command)) {
			dir := folder(t, map[string]string{"serve.py": pythonServer})
			return []string{program(t, "python3"), filepath.Join(dir, "serve.py"), strconv.Itoa(n)}, nil
		}},
		{"node", 3, func(t *testing.T, n int) ([]string, []func(*launch.Command)) {
			dir := folder(t, map[string]string{"serve.js": nodeServer})
			return []string{program(t, "node"), filepath.Join(dir, "serve.js"), strconv.Itoa(n)}, nil
		}},
		{"java", 2, func(t *testing.T, n int) ([]string, []func(*launch.Command)) {
			dir := folder(t, map[string]string{"Serve.java": javaServer})
			return []string{program(t, "java"), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", filepath.Join(dir, "Serve.java"), strconv.Itoa(n)}, nil
		}},
		{"go", 3, func(_ *testing.T, n int) ([]string, []func(*launch.Command)) {
			argv, change := role("http", ":"+strconv.Itoa(n))
			return argv, []func(*launch.Command){change}
		}},
	} {
		t.Run(server.name, func(t *testing.T) {
			n := freePort(t)
			argv, change := server.command(t, n)
			h := newHive(t, port.Options{})
			pids := map[string]int{}
			for slot := range server.copies {
				w := h.spawn(slot, argv, change...)
				pids[strconv.Itoa(w.pid)] = 0
			}
			for slot := range server.copies {
				h.listening(slot, 1)
			}
			// The kernel's hash spreads by source port. With 60 connections each process is missed with a probability below 1e-10.
			for range 60 {
				text, err := get(loopback(n), "/")
				if err != nil {
					t.Fatal(err)
				}
				_, pid, found := strings.Cut(text, "pid ")
				if !found {
					t.Fatalf("no pid in %q", text)
				}
				pids[strings.TrimSpace(pid)]++
			}
			if len(pids) != server.copies {
				t.Errorf("answers came from %v, want the %d workers only", pids, server.copies)
			}
			for pid, answers := range pids {
				if answers == 0 {
					t.Errorf("worker %s answered nothing: %v", pid, pids)
				}
			}
			for _, f := range h.all() {
				switch f.(type) {
				case port.Shared, port.Listening:
				default:
					t.Errorf("unexpected fact %T%+v", f, f)
				}
			}
		})
	}
}

func init() {
	roles["http"] = func(args []string) {
		serveHTTP(args[0])
	}
	roles["print"] = func(args []string) { fmt.Println(os.Getpid(), args) }
}
