package wait

import (
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skep/internal/logger"
	"skep/prestart"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]Target{
		"tcp://db:5432":             {scheme: "tcp", address: "db:5432"},
		"tcp://db:5432/":            {scheme: "tcp", address: "db:5432"},
		"TCP://db-1.x_y.svc.:1":     {scheme: "tcp", address: "db-1.x_y.svc.:1"},
		"tcp://127.0.0.1:65535":     {scheme: "tcp", address: "127.0.0.1:65535"},
		"tcp://[::1]:80":            {scheme: "tcp", address: "[::1]:80"},
		"tcp://[fe80::1%eth0]:80":   {scheme: "tcp", address: "[fe80::1%eth0]:80"},
		"http://x":                  {scheme: "http", address: "x:80", host: "x", path: "/"},
		"http://x/":                 {scheme: "http", address: "x:80", host: "x", path: "/"},
		"http://x:8080/a/b?c=d&e":   {scheme: "http", address: "x:8080", host: "x:8080", path: "/a/b?c=d&e"},
		"http://x?a=http://y/":      {scheme: "http", address: "x:80", host: "x", path: "/?a=http://y/"},
		"http://[fe80::1%eth0]:8/a": {scheme: "http", address: "[fe80::1%eth0]:8", host: "[fe80::1]:8", path: "/a"},
		"http://[::1]/a":            {scheme: "http", address: "[::1]:80", host: "[::1]", path: "/a"},
		"unix:///run/x.sock":        {scheme: "unix", address: "/run/x.sock"},
		"file:///a%20b?c#d":         {scheme: "file", address: "/a%20b?c#d"},
		"file:///":                  {scheme: "file", address: "/"},
		"file:///ü":                 {scheme: "file", address: "/ü"},
	} {
		want.url = in
		got, err := Parse(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Target{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", in, diff)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                                    "is no URL",
		"db:5432":                             "is no URL",
		"tcp:db:5432":                         "is no URL",
		"https://x/":                          "https is not supported",
		"udp://x:1":                           `has the scheme "udp"; allowed are tcp://HOST:PORT`,
		"://x":                                "has the scheme",
		"tcp://db":                            "no port",
		"tcp://db:":                           "no port",
		"tcp://:80":                           "no valid host",
		"tcp://":                              "no valid host",
		"tcp://db:0":                          "out of range",
		"tcp://db:65536":                      "out of range",
		"tcp://db:99999999999999":             "out of range",
		"tcp://db:postgres":                   "no number",
		"tcp://db:-1":                         "no number",
		"tcp://db:1:2":                        "no number",
		"tcp://db:5432/x":                     "after the port",
		"tcp://db:5432?x":                     "after the port",
		"tcp://db:5432/#x":                    "after the port",
		"tcp://::1:80":                        "no valid host",
		"tcp://[::1:80":                       "[ without a ]",
		"tcp://[::1]x:80":                     "between ] and the port",
		"tcp://[1.2.3.4]:80":                  "no IPv6 address",
		"tcp://[db]:80":                       "no IPv6 address",
		"tcp://user:pw@db:80":                 "user or password",
		"http://user@x/":                      "user or password",
		"http://x/a b":                        "blank or control",
		"http://x/a\r\nHost: y":               "blank or control",
		"http://x/ü":                          "written as %XX",
		"http://x/#a":                         "has a # part",
		"http://ü/":                           "no valid host",
		"http:///a":                           "no valid host",
		"unix://x.sock":                       "absolute path",
		"unix://":                             "absolute path",
		"file://a":                            "absolute path",
		"unix:///" + strings.Repeat("x", 107): "longer than the 107 bytes",
	} {
		got, err := Parse(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %+v, %v; want %s", in, got, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "pw") {
			t.Errorf("%q: the error tells a password: %v", in, err)
		}
	}
}

func TestStep(t *testing.T) {
	target, err := Parse("http://x/healthz?token=s3cret")
	if err != nil {
		t.Fatal(err)
	}
	got := Step(target, time.Minute, logger.JSON, logger.Warn)
	want := prestart.Step{
		Kind: prestart.Wait, Name: "http://x/healthz", Path: "/proc/self/exe",
		Argv:    []string{"skep-wait", "--timeout=1m0s", "--log-level=warning", "--json", "http://x/healthz?token=s3cret"},
		Timeout: 62 * time.Second,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := Step(target, 0, logger.Text, logger.Info); got.Timeout != 0 || got.Argv[1] != "--timeout=0s" || len(got.Argv) != 4 {
		t.Errorf("without a timeout: %+v", got)
	}
	if !Is(got.Argv) || Is([]string{"/skep"}) || Is(nil) {
		t.Error("Is does not tell the child from skep")
	}
}

// FuzzParse compares with net/url, which is more than PID 1 needs and takes more
// than can be waited for.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"tcp://db:5432", "http://[::1]:80/a?b", "unix:///x", "file:///x%20", "http://a@b/", "https://x", "tcp://[fe80::1%eth0]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := Parse(in)
		if err != nil {
			return
		}
		for _, part := range []string{got.host, got.path, got.address} {
			if strings.ContainsAny(part, " \r\n\t\x00") {
				t.Fatalf("%q: %q could end a line of a request", in, part)
			}
		}
		switch got.scheme {
		case "tcp", "http":
			host, port, err := net.SplitHostPort(got.address)
			if err != nil || host == "" || port == "" {
				t.Fatalf("%q: address %q: %v", in, got.address, err)
			}
			if strings.Contains(got.address, "%") { // a zone: net/url wants %25
				return
			}
			u, err := url.Parse(in)
			if err != nil {
				if strings.Contains(err.Error(), "invalid URL escape") { // the server's business
					return
				}
				t.Fatalf("%q is taken and net/url says %v", in, err)
			}
			if u.Hostname() != host || u.Port() != "" && u.Port() != port || u.User != nil {
				t.Fatalf("%q: %q and %q, net/url has %q and %q", in, host, port, u.Hostname(), u.Port())
			}
			if want := u.RequestURI(); got.scheme == "http" && !strings.Contains(want, "%") && u.RawQuery != "" && want != got.path {
				t.Fatalf("%q: path %q, net/url has %q", in, got.path, want)
			}
		case "unix", "file":
			if got.address[0] != '/' {
				t.Fatalf("%q: path %q", in, got.address)
			}
		default:
			t.Fatalf("%q: scheme %q", in, got.scheme)
		}
	})
}
