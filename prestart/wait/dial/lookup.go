package dial

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotFound says that there is no such name.
var ErrNotFound = errors.New("no such host")

// files is where the machine says how names are looked up.
type files struct{ hosts, resolv string }

var system = files{hosts: "/etc/hosts", resolv: "/etc/resolv.conf"}

// lookup finds the addresses of a host: a literal address, then hosts(5), then the
// name servers of resolv.conf(5) with its search list and ndots, as glibc does
// with "hosts: files dns". The files are read each time: a container's may change
// while it waits.
func lookup(ctx context.Context, host string, from files) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	if text, err := os.ReadFile(from.hosts); err == nil {
		if found := inHosts(string(text), host); len(found) > 0 {
			return found, nil
		}
	}
	text, _ := os.ReadFile(from.resolv) // absent: the local server, resolv.conf(5)
	r := parseResolv(string(text))
	err := error(ErrNotFound)
	for _, name := range r.candidates(host) {
		found, problem := r.ask(ctx, name)
		if len(found) > 0 {
			return found, nil
		}
		if problem != nil && !errors.Is(problem, ErrNotFound) {
			err = problem
		}
	}
	return nil, err
}

// inHosts lists the addresses of a name in the text of hosts(5).
func inHosts(text, host string) (found []netip.Addr) {
	host = strings.TrimSuffix(host, ".")
	for _, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		a, err := netip.ParseAddr(fields[0])
		for _, name := range fields[1:] {
			if err == nil && strings.EqualFold(name, host) {
				found = append(found, a)
			}
		}
	}
	return found
}

// resolver is what resolv.conf(5) says.
type resolver struct {
	servers  []netip.AddrPort
	search   []string
	ndots    int
	attempts int
	timeout  time.Duration
}

func parseResolv(text string) resolver {
	r := resolver{ndots: 1, attempts: 2, timeout: 5 * time.Second}
	for _, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.ContainsAny(fields[0][:1], "#;") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(fields[1]); err == nil && len(r.servers) < 3 {
				r.servers = append(r.servers, netip.AddrPortFrom(a, 53))
			}
		case "domain", "search":
			r.search = fields[1:]
		case "options":
			for _, option := range fields[1:] {
				r.option(option)
			}
		}
	}
	if len(r.servers) == 0 {
		r.servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	return r
}

func (r *resolver) option(text string) {
	name, value, _ := strings.Cut(text, ":")
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 {
		return
	}
	switch name {
	case "ndots":
		r.ndots = min(n, 15)
	case "timeout":
		r.timeout = time.Duration(min(max(n, 1), 30)) * time.Second
	case "attempts":
		r.attempts = min(max(n, 1), 5)
	}
}

// candidates lists the full names to ask for, in order: one with enough dots as
// it stands first, another one with the search list first.
func (r *resolver) candidates(host string) (names []string) {
	if strings.HasSuffix(host, ".") {
		return []string{host}
	}
	for _, domain := range r.search {
		names = append(names, host+"."+strings.TrimSuffix(domain, ".")+".")
	}
	if strings.Count(host, ".") >= r.ndots {
		return append([]string{host + "."}, names...)
	}
	return append(names, host+".")
}

// ask asks the servers, one after another, for both kinds of addresses of a
// name.
func (r *resolver) ask(ctx context.Context, name string) (found []netip.Addr, err error) {
	for _, kind := range []recordType{typeA, typeAAAA} {
		query, failure := packQuery(uint16(rand.Uint32()), name, kind)
		if failure != nil {
			return nil, ErrNotFound // no server can know what cannot be asked
		}
		addrs, failure := r.exchange(ctx, query, kind)
		found = append(found, addrs...)
		if failure != nil && err == nil {
			err = failure
		}
	}
	return found, err
}

// exchange sends the query until a server answers it.
func (r *resolver) exchange(ctx context.Context, query []byte, kind recordType) ([]netip.Addr, error) {
	err := error(ErrNotFound)
	for range r.attempts {
		for _, server := range r.servers {
			var answer []byte
			if answer, err = r.send(ctx, server, query); err != nil {
				continue
			}
			addrs, failure := readAnswer(answer, query, kind)
			if failure == nil || errors.Is(failure, ErrNotFound) {
				return addrs, failure
			}
			err = failure
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// send asks one server over UDP and returns what answers this query.
func (r *resolver) send(ctx context.Context, server netip.AddrPort, query []byte) ([]byte, error) {
	f, err := connectWithin(ctx, 1, family(server.Addr()), unix.SOCK_DGRAM, sockaddr(server.Addr(), server.Port()))
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // a datagram socket has nothing to lose
	deadline := time.Now().Add(r.timeout)
	if limit, ok := ctx.Deadline(); ok && limit.Before(deadline) {
		deadline = limit
	}
	if err := f.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := f.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return nil, err
		}
		if n >= 2 && buf[0] == query[0] && buf[1] == query[1] {
			return buf[:n], nil
		}
		if n == 0 {
			return nil, io.ErrUnexpectedEOF
		}
	}
}
