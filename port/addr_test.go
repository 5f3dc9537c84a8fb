package port

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseAddr(t *testing.T) {
	v4 := func(ip string, port uint16) Addr {
		return Addr{Network: IPv4, IP: netip.MustParseAddr(ip), Port: port}
	}
	v6 := func(ip string, port uint16) Addr {
		return Addr{Network: IPv6, IP: netip.MustParseAddr(ip), Port: port}
	}
	for _, c := range []struct {
		text, name string
		want       Addr
	}{
		{":8000", "", Addr{Network: Either, Port: 8000}},
		{"0.0.0.0:8000", "", v4("0.0.0.0", 8000)},
		{"127.0.0.1:1", "", v4("127.0.0.1", 1)},
		{"[::]:65535", "", v6("::", 65535)},
		{"[::1]:80", "", v6("::1", 80)},
		{"[::ffff:1.2.3.4]:80", "", v6("::ffff:1.2.3.4", 80)},
		{"[fe80::1%3]:80", "", Addr{Network: IPv6, IP: netip.MustParseAddr("fe80::1"), Port: 80, Zone: 3}},
		{"unix:///run/app.sock", "", Addr{Network: Unix, Path: "/run/app.sock"}},
		{"unix:/run/a=b:c.sock", "", Addr{Network: Unix, Path: "/run/a=b:c.sock"}},
		{"unix:@name", "", Addr{Network: Unix, Path: "@name"}},
		{"web=:8000", "web", Addr{Network: Either, Port: 8000}},
		{"web.1=[::1]:80", "web.1", v6("::1", 80)},
		{"admin=unix:///a", "admin", Addr{Network: Unix, Path: "/a"}},
	} {
		name, got, err := ParseAddr(c.text)
		if err != nil || name != c.name || got != c.want {
			t.Errorf("ParseAddr(%q) = %q, %+v, %v, want %q, %+v", c.text, name, got, err, c.name, c.want)
			continue
		}
		if _, again, err := ParseAddr(got.String()); err != nil || again != got {
			t.Errorf("%q prints as %q, which reads as %+v, %v", c.text, got, again, err)
		}
	}
	for _, text := range []string{
		"", "8000", ":", ":0", ":65536", ":-1", ":http", "localhost:80", "1.2.3.4", "1.2.3.4:0", "::1:80", "[::1]", "[::1]:", "[::1%eth0]:80", "[::1%1]:80",
		"[fe80::1%eth0]:80", "unix:", "unix://", "unix:///", "unix:run/a", "unix:@", "unix:/a\x00b", "unix:/" + strings.Repeat("x", 107),
		"=:80", "a b=:80", "a:b=:80", "ü=:80", strings.Repeat("n", 256) + "=:80", "http://x:80", "a=b=:80",
	} {
		if name, got, err := ParseAddr(text); err == nil {
			t.Errorf("ParseAddr(%q) = %q, %+v, want an error", text, name, got)
		} else if !strings.HasPrefix(err.Error(), "cannot use address ") {
			t.Errorf("ParseAddr(%q): %v", text, err)
		}
	}
}

func FuzzParseAddr(f *testing.F) {
	for _, seed := range []string{":8000", "a=0.0.0.0:1", "[fe80::1%3]:80", "unix:///run/x", "unix:@n", "[::ffff:1.2.3.4]:9"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		name, a, err := ParseAddr(text)
		if err != nil {
			return
		}
		if a.TCP() == (a.Network == Unix) || a.TCP() && a.Port == 0 {
			t.Errorf("%q gives %+v", text, a)
		}
		_, again, err := ParseAddr(a.String())
		if err != nil || again != a {
			t.Errorf("%q (name %q) prints as %q, which gives %+v, %v", text, name, a, again, err)
		}
	})
}

// sockaddr4 and sockaddr6 are what a C program passes.
func sockaddr4(ip string, port uint16) []byte {
	b := binary.NativeEndian.AppendUint16(nil, unix.AF_INET)
	b = binary.BigEndian.AppendUint16(b, port)
	b = append(b, netip.MustParseAddr(ip).AsSlice()...)
	return append(b, make([]byte, 8)...)
}

func sockaddr6(ip string, port uint16, scope uint32) []byte {
	b := binary.NativeEndian.AppendUint16(nil, unix.AF_INET6)
	b = binary.BigEndian.AppendUint16(b, port)
	b = append(b, 1, 2, 3, 4) // flow information, which a bind ignores
	b = append(b, netip.MustParseAddr(ip).AsSlice()...)
	return binary.NativeEndian.AppendUint32(b, scope)
}

func TestDecodeSockaddr(t *testing.T) {
	unspec := sockaddr4("0.0.0.0", 80)
	binary.NativeEndian.PutUint16(unspec, unix.AF_UNSPEC)
	unspecOther := sockaddr4("1.0.0.0", 80)
	binary.NativeEndian.PutUint16(unspecOther, unix.AF_UNSPEC)
	for _, c := range []struct {
		name string
		b    []byte
		want string // "" for not decoded
	}{
		{"IPv4", sockaddr4("127.0.0.1", 8000), "127.0.0.1:8000"},
		{"IPv4, port 0", sockaddr4("0.0.0.0", 0), "0.0.0.0:0"},
		{"IPv4, one byte short", sockaddr4("127.0.0.1", 8000)[:15], ""},
		{"IPv4, longer", append(sockaddr4("127.0.0.1", 8000), 9, 9), "127.0.0.1:8000"},
		{"AF_UNSPEC, wildcard", unspec, "0.0.0.0:80"},
		{"AF_UNSPEC, address", unspecOther, ""},
		{"IPv6", sockaddr6("::1", 80, 0), "[::1]:80"},
		{"IPv6, scope without a link-local address", sockaddr6("2001:db8::1", 80, 7), "[2001:db8::1]:80"},
		{"IPv6, link-local", sockaddr6("fe80::1", 80, 7), "[fe80::1%7]:80"},
		{"IPv6, mapped", sockaddr6("::ffff:1.2.3.4", 80, 0), "[::ffff:1.2.3.4]:80"},
		{"IPv6 of RFC 2133, without scope", sockaddr6("::", 80, 0)[:24], "[::]:80"},
		{"IPv6, one byte short of that", sockaddr6("::", 80, 0)[:23], ""},
		{"unix", append(binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX), "/run/application.sock"...), ""},
		{"netlink", append(binary.NativeEndian.AppendUint16(nil, unix.AF_NETLINK), make([]byte, 14)...), ""},
		{"nothing", nil, ""},
	} {
		a, ok := decodeSockaddr(c.b)
		if ok != (c.want != "") || ok && a.String() != c.want {
			t.Errorf("%s: %v, %v, want %q", c.name, a, ok, c.want)
		}
	}
}

func FuzzDecodeSockaddr(f *testing.F) {
	f.Add(sockaddr4("127.0.0.1", 8000))
	f.Add(sockaddr6("fe80::1", 80, 7))
	f.Add(sockaddr6("::", 80, 0)[:24])
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := decodeSockaddr(b)
		if !ok {
			return
		}
		// What was decoded must be what package unix would pass to the kernel for it.
		switch s := a.sockaddr().(type) {
		case *unix.SockaddrInet4:
			if a.Network != IPv4 || s.Port != int(binary.BigEndian.Uint16(b[2:])) || s.Addr != [4]byte(b[4:8]) {
				t.Errorf("%x decodes to %+v", b, a)
			}
		case *unix.SockaddrInet6:
			if a.Network != IPv6 || s.Port != int(binary.BigEndian.Uint16(b[2:])) || s.Addr != [16]byte(b[8:24]) {
				t.Errorf("%x decodes to %+v", b, a)
			}
		default:
			t.Errorf("%x decodes to %+v", b, a)
		}
	})
}
