package dial

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestTCP(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		f, err := TCP(within(t, 10*time.Second), ln.Addr().String())
		if err != nil {
			t.Fatalf("cannot dial %s: %v", ln.Addr(), err)
		}
		f.Close()
		gone := ln.Addr().String()
		ln.Close()
		if _, err := TCP(within(t, 10*time.Second), gone); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("nobody listens on %s, and the error is %v", gone, err)
		}
	}
}

// A listener whose queue is full answers no SYN: the connect hangs until the
// time is over, and the error says that it was the time.
func TestTimeIsBounded(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, _ := unix.Getsockname(fd)
	address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port)).String()
	for range 16 {
		f, err := TCP(within(t, 200*time.Millisecond), address)
		if err == nil {
			defer f.Close()
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the error is %v", err)
		}
		return
	}
	t.Error("the queue never filled")
}

func TestUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := Unix(within(t, 10*time.Second), path, unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := Unix(within(t, 10*time.Second), path, unix.SOCK_DGRAM); !errors.Is(err, syscall.EPROTOTYPE) {
		t.Errorf("the wrong type of socket: %v", err)
	}
}

func TestSplit(t *testing.T) {
	for in, want := range map[string]string{"a:1": "a", "[::1]:80": "::1", "::1:80": "::1"} {
		if host, _, err := split(in); err != nil || host != want {
			t.Errorf("%s: %q, %v", in, host, err)
		}
	}
	for _, in := range []string{"", "a", ":1", "a:", "a:70000", "a:b"} {
		if _, _, err := split(in); err == nil {
			t.Errorf("%q is taken", in)
		}
	}
}

func TestCandidates(t *testing.T) {
	for _, c := range []struct{ resolv, host, want string }{
		{"", "db", "db."},
		{"search ns.svc.cluster.local svc.cluster.local\noptions ndots:5", "db", "db.ns.svc.cluster.local. db.svc.cluster.local. db."},
		{"search a.example", "db.x", "db.x. db.x.a.example."},
		{"search a.example", "db.x.", "db.x."},
		{"# search b\ndomain a.", "db", "db.a. db."},
	} {
		r := parseResolv(c.resolv)
		if got := strings.Join(r.candidates(c.host), " "); got != c.want {
			t.Errorf("%q %s: %s, want %s", c.resolv, c.host, got, c.want)
		}
	}
	r := parseResolv("nameserver 192.0.2.1\nnameserver bad\nnameserver 2001:db8::1\noptions timeout:99 attempts:3 ndots:x rotate")
	if len(r.servers) != 2 || r.timeout != 30*time.Second || r.attempts != 3 || r.ndots != 1 {
		t.Errorf("%+v", r)
	}
}

func TestHosts(t *testing.T) {
	text := "127.0.0.1 localhost\n::1 localhost # both\nbad db\n192.0.2.7 db.example DB\n#192.0.2.8 db\n"
	for host, want := range map[string]int{"localhost": 2, "db": 1, "db.example.": 1, "x": 0, "both": 0} {
		if got := inHosts(text, host); len(got) != want {
			t.Errorf("%s: %v", host, got)
		}
	}
}

// server is a name server on loopback that knows one name and answers others as
// told.
func server(t *testing.T, answer func(q dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.ResourceBody)) netip.AddrPort {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			code, bodies := answer(m.Questions[0])
			reply := dnsmessage.Message{
				Header:    dnsmessage.Header{ID: m.ID, Response: true, RCode: code},
				Questions: m.Questions,
			}
			for _, body := range bodies {
				reply.Answers = append(reply.Answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET}, Body: body})
			}
			packed, err := reply.Pack()
			if err != nil {
				continue
			}
			stray := slices.Clone(packed)
			stray[0] ^= 0xff // of somebody else's question
			_, _ = conn.WriteToUDPAddrPort(stray, from)
			_, _ = conn.WriteToUDPAddrPort(packed, from)
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestAsk(t *testing.T) {
	addr := server(t, func(q dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.ResourceBody) {
		switch q.Name.String() {
		case "db.ns.":
			if q.Type == dnsmessage.TypeA {
				return dnsmessage.RCodeSuccess, []dnsmessage.ResourceBody{
					&dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("real.ns.")},
					&dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}},
				}
			}
			return dnsmessage.RCodeSuccess, []dnsmessage.ResourceBody{&dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("2001:db8::1").As16()}}
		case "broken.":
			return dnsmessage.RCodeServerFailure, nil
		}
		return dnsmessage.RCodeNameError, nil
	})
	r := resolver{servers: []netip.AddrPort{addr}, search: []string{"ns"}, ndots: 1, attempts: 1, timeout: 5 * time.Second}
	found, err := r.ask(within(t, 10*time.Second), "db.ns.")
	if want := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}; err != nil || !slices.Equal(found, want) {
		t.Errorf("%v, %v", found, err)
	}
	if _, err := r.ask(within(t, 10*time.Second), "nowhere."); !errors.Is(err, ErrNotFound) {
		t.Errorf("a name that does not exist: %v", err)
	}
	if _, err := r.ask(within(t, 10*time.Second), "broken."); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("a server that fails: %v", err)
	}
	silent, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r.servers = []netip.AddrPort{silent.LocalAddr().(*net.UDPAddr).AddrPort(), addr}
	r.timeout = 100 * time.Millisecond
	if found, err := r.ask(within(t, 10*time.Second), "db.ns."); err != nil || len(found) != 2 {
		t.Errorf("behind a silent server: %v, %v", found, err)
	}
}

func TestLookup(t *testing.T) {
	dir := t.TempDir()
	f := files{hosts: filepath.Join(dir, "hosts"), resolv: filepath.Join(dir, "none")}
	if err := os.WriteFile(f.hosts, []byte("192.0.2.9 db\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{"db": "192.0.2.9", "192.0.2.4": "192.0.2.4", "::1": "::1"} {
		found, err := lookup(within(t, 10*time.Second), host, f)
		if err != nil || len(found) != 1 || found[0].String() != want {
			t.Errorf("%s: %v, %v", host, found, err)
		}
	}
}

// What is sent and read is what x/net's dnsmessage understands.
func TestQueryIsUnderstood(t *testing.T) {
	query, err := packQuery(0x1234, "db.ns.", typeAAAA)
	if err != nil {
		t.Fatal(err)
	}
	want := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("db.ns."), Type: dnsmessage.TypeAAAA, Class: dnsmessage.ClassINET}},
	}
	packed, err := want.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(query, packed) {
		t.Errorf("%x, want %x", query, packed)
	}
	for _, name := range []string{"", ".", "db", "a..b.", strings.Repeat("a", 64) + ".", strings.Repeat("a.", 128)} {
		if _, err := packQuery(1, name, typeA); err == nil {
			t.Errorf("%q can be asked for", name)
		}
	}
}

func FuzzReadAnswer(f *testing.F) {
	query, err := packQuery(7, "db.ns.", typeA)
	if err != nil {
		f.Fatal(err)
	}
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, Response: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("db.ns."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	for _, body := range []dnsmessage.ResourceBody{
		&dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("real.ns.")}, &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}},
	} {
		reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{
			Name: reply.Questions[0].Name, Class: dnsmessage.ClassINET}, Body: body})
	}
	packed, err := reply.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Add(query)
	f.Add(packed[:len(packed)-3])
	f.Fuzz(func(t *testing.T, answer []byte) {
		found, err := readAnswer(answer, query, typeA)
		if (len(found) == 0) != (err != nil) {
			t.Errorf("%v with %v", found, err)
		}
		// Whatever the library can read as a good answer has the same addresses.
		var m dnsmessage.Message
		if m.Unpack(answer) != nil || err != nil {
			return
		}
		var want []netip.Addr
		for _, r := range m.Answers {
			if a, ok := r.Body.(*dnsmessage.AResource); ok {
				want = append(want, netip.AddrFrom4(a.A))
			}
		}
		if !slices.Equal(found, want) {
			t.Errorf("%v, want %v", found, want)
		}
	})
}

func FuzzFiles(f *testing.F) {
	f.Add("nameserver 192.0.2.1\nsearch a b\noptions ndots:5", "db")
	f.Fuzz(func(t *testing.T, text, host string) {
		r := parseResolv(text)
		if len(r.servers) == 0 || len(r.servers) > 3 || r.timeout <= 0 || r.attempts < 1 {
			t.Errorf("%+v", r)
		}
		if len(r.candidates(host)) == 0 {
			t.Error("no name to ask for")
		}
		inHosts(text, host)
	})
}
