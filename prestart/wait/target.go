// Package wait is the step behind --wait: a child process of skep that looks
// for something until it is there.
//
// It is a process of its own (skep itself, called skep-wait) so that PID 1
// never dials and never looks up a name: those block, need threads, and may
// hang in a resolver. A signal ends it as it ends any program.
package wait

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"skep/internal/logger"
	"skep/prestart"
)

// Target is what a --wait URL asks for. Its zero value is none; [Parse] makes it.
type Target struct {
	url     string // as given
	scheme  string // tcp, http, unix or file
	address string // host:port, or the path of a socket or file
	host    string // http: the Host header
	path    string // http: path and query
}

// URL returns the target as it was given.
func (t Target) URL() string { return t.url }

// String returns the URL for log lines: without a query, which may hold a
// secret.
func (t Target) String() string {
	if t.scheme == "http" {
		url, _, _ := strings.Cut(t.url, "?")
		return url
	}
	return t.url
}

const allowed = "allowed are tcp://HOST:PORT, http://HOST[:PORT]/PATH, unix:///PATH and file:///PATH"

// Parse checks a --wait URL. It is pure: it looks nothing up.
//
//   - tcp://HOST:PORT accepts a connection.
//   - http://HOST[:PORT][/PATH][?QUERY] answers a GET with 2xx or 3xx.
//   - unix:///PATH, a socket, accepts a connection.
//   - file:///PATH exists; of any kind.
//
// The paths of unix and file are taken as they are, without % decoding. IPv6
// addresses are in brackets. https is refused: certificates and their roots have
// no place in an init. Errors name what is wrong and what is allowed.
func Parse(url string) (Target, error) {
	for i := 0; i < len(url); i++ {
		if url[i] <= ' ' || url[i] == 0x7f {
			return Target{}, errors.New("has a blank or control character; " + allowed)
		}
	}
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		return Target{}, errors.New("is no URL; " + allowed)
	}
	t := Target{url: url, scheme: strings.ToLower(scheme)}
	var err error
	switch t.scheme {
	case "tcp":
		authority, path, _ := strings.Cut(rest, "/")
		if path != "" || strings.ContainsAny(rest, "?#") {
			return Target{}, errors.New("has something after the port; wanted is tcp://HOST:PORT")
		}
		t.address, _, err = address(authority, "")
	case "http":
		if strings.Contains(rest, "#") {
			return Target{}, errors.New("has a # part, which no server ever sees; leave it out")
		}
		authority, path := rest, "/"
		if i := strings.IndexAny(rest, "/?"); i >= 0 {
			authority, path = rest[:i], rest[i:]
			if path[0] == '?' {
				path = "/" + path
			}
		}
		for i := 0; i < len(path); i++ {
			if path[i] > 0x7e {
				return Target{}, errors.New("has a character in its path that must be written as %XX")
			}
		}
		t.path = path
		t.address, t.host, err = address(authority, "80")
	case "unix", "file":
		if !strings.HasPrefix(rest, "/") {
			return Target{}, fmt.Errorf("needs an absolute path, with three slashes: %s:///PATH", t.scheme)
		}
		if t.scheme == "unix" && len(rest) > maxUnix {
			return Target{}, fmt.Errorf("has a path longer than the %d bytes of a socket's address", maxUnix)
		}
		t.address = rest
	case "https":
		return Target{}, errors.New("https is not supported, skep has no certificates; wait for the port with tcp://HOST:443, or use --prestart with a program that speaks TLS")
	default:
		return Target{}, fmt.Errorf("has the scheme %q; %s", scheme, allowed)
	}
	if err != nil {
		return Target{}, err
	}
	return t, nil
}

// maxUnix is the size of sun_path without the final NUL, unix(7).
const maxUnix = 107

// address checks HOST:PORT and returns it for dialling and as a Host header.
func address(authority, port string) (dial, header string, err error) {
	if strings.Contains(authority, "@") {
		return "", "", errors.New("has a user or password, which is not supported")
	}
	host := authority
	if strings.HasPrefix(authority, "[") {
		end := strings.IndexByte(authority, ']')
		if end < 0 {
			return "", "", errors.New("has a [ without a ]")
		}
		host = authority[1:end]
		ip, err := netip.ParseAddr(host)
		if err != nil || !ip.Is6() {
			return "", "", errors.New("has something in brackets that is no IPv6 address")
		}
		header = "[" + ip.WithZone("").String() + "]"
		authority = authority[end+1:]
		if authority != "" && authority[0] != ':' {
			return "", "", errors.New("has something between ] and the port")
		}
	} else {
		i := strings.IndexByte(authority, ':')
		if i >= 0 {
			host, authority = authority[:i], authority[i:]
		} else {
			authority = ""
		}
		if !validHost(host) {
			return "", "", errors.New("has no valid host; allowed are letters, digits, - _ and ., or an address, an IPv6 one in brackets")
		}
		header = host
	}
	if authority != "" {
		port = authority[1:]
		header += ":" + port
	}
	if port == "" {
		return "", "", errors.New("has no port, as in tcp://db:5432")
	}
	for i := 0; i < len(port); i++ {
		if port[i] < '0' || port[i] > '9' {
			return "", "", errors.New("has a port that is no number; allowed are 1 to 65535")
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", errors.New("has a port out of range; allowed are 1 to 65535")
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + port, header, nil
}

func validHost(host string) bool {
	for i := 0; i < len(host); i++ {
		c := host[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return host != "" && len(host) <= 254
}

// name is what the child is called in ps, and how skep knows what it is.
const name = "skep-wait"

// Is tells whether argv is that of the waiting child. main asks before anything
// else, above all before it takes any signal: TERM has to end the child.
func Is(argv []string) bool { return len(argv) > 0 && argv[0] == name }

// margin is how much longer than its own timeout the child may take. It ends by
// itself at its timeout; it cannot when stat(2) hangs on a dead volume.
const margin = 2 * time.Second

// Step returns the step that waits for t, at most timeout (0: for ever). format
// and level are those of skep's own lines.
func Step(t Target, timeout time.Duration, format logger.Format, level logger.Level) prestart.Step {
	step := prestart.Step{
		Kind: prestart.Wait, Name: t.String(),
		Path: "/proc/self/exe", Argv: argv(t.url, format, level, "--timeout="+timeout.String()),
	}
	if timeout > 0 {
		step.Timeout = timeout + margin
	}
	return step
}

// Probe is the argument vector of a child that waits, without end, until
// http://where answers a GET that comes from this address.
func Probe(where string, from [4]byte, format logger.Format, level logger.Level) []string {
	return argv("http://"+where, format, level, "--from="+netip.AddrFrom4(from).String())
}

func argv(url string, format logger.Format, level logger.Level, flags ...string) []string {
	args := append(append([]string{name}, flags...), "--log-level="+level.String())
	if format == logger.JSON {
		args = append(args, "--json")
	}
	return append(args, url)
}
