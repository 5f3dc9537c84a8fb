package port

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Network is the kind of an Addr.
type Network uint8

// The networks a listener can be on.
const (
	// Either is ":8000": all addresses of both families on one IPv6 socket, or on an IPv4 socket where there is no IPv6. Only --listen makes it;
	// a held socket always has the network it got.
	Either Network = iota + 1
	IPv4
	IPv6
	Unix
)

// Addr is the address of a listener. It is comparable; equal addresses are one group. The zero Addr is none.
type Addr struct {
	Network Network
	// IP is the address of IPv4 and IPv6, without a zone.
	IP netip.Addr
	// Port is 1 to 65535 for IPv4, IPv6 and Either.
	Port uint16
	// Zone is the interface number of a link-local IPv6 address.
	Zone uint32
	// V6Only is IPV6_V6ONLY: an IPv6 socket that takes no IPv4. The kernel keeps such sockets in a group of their own.
	V6Only bool
	// Path is the absolute path of Unix, or "@name" for an abstract one.
	Path string
}

// String returns the address in the form ParseAddr reads (a zone apart). V6Only is not shown.
func (a Addr) String() string {
	switch a.Network {
	case Either:
		return ":" + strconv.Itoa(int(a.Port))
	case IPv4:
		return netip.AddrPortFrom(a.IP, a.Port).String()
	case IPv6:
		ip := a.IP
		if a.Zone != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(a.Zone), 10))
		}
		return netip.AddrPortFrom(ip, a.Port).String()
	case Unix:
		return "unix:" + a.Path
	default:
		return "no address"
	}
}

// TCP says whether the address is one of a TCP listener.
func (a Addr) TCP() bool { return a.Network == Either || a.Network == IPv4 || a.Network == IPv6 }

// maxUnixPath is the room for a path in struct sockaddr_un, less its final zero (unix(7)).
const maxUnixPath = 107

// ParseAddr reads a value of --listen: ":8000", "0.0.0.0:8000", "[::]:8000", "127.0.0.1:8000", "unix:///run/app.sock", "unix:/run/app.sock",
// "unix:@abstract", each optionally after "NAME=". The name is what LISTEN_FDNAMES shows (sd_listen_fds_with_names(3)), "" when none is given.
// "[::]:8000" takes IPv4 too, as systemd and Go have it. Host names are refused: nothing here may wait for a name server.
func ParseAddr(text string) (name string, a Addr, err error) {
	rest := text
	if i := strings.IndexAny(text, "=:/["); i >= 0 && text[i] == '=' {
		name, rest = text[:i], text[i+1:]
		if err := checkName(name); err != nil {
			return "", Addr{}, fmt.Errorf("cannot use address %q: %w", text, err)
		}
	}
	a, err = parseAddr(rest)
	if err != nil {
		return "", Addr{}, fmt.Errorf("cannot use address %q: %w", text, err)
	}
	return name, a, nil
}

func checkName(name string) error {
	if name == "" || len(name) > 255 {
		return errors.New("the name before = must have 1 to 255 characters")
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || c == ':' {
			return errors.New("the name before = must be printable ASCII without spaces and colons")
		}
	}
	return nil
}

var errWant = errors.New("want :PORT, IP:PORT, [IPV6]:PORT or unix:///PATH")

func parseAddr(text string) (Addr, error) {
	if path, found := strings.CutPrefix(text, "unix:"); found {
		return parseUnix(path)
	}
	if port, found := strings.CutPrefix(text, ":"); found {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return Addr{}, errWant
		}
		return checkPort(Addr{Network: Either, Port: uint16(n)})
	}
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return Addr{}, errWant
	}
	ip := ap.Addr()
	a := Addr{Network: IPv4, IP: ip.WithZone(""), Port: ap.Port()}
	if ip.Is6() {
		a.Network = IPv6
	}
	if zone := ip.Zone(); zone != "" {
		n, err := strconv.ParseUint(zone, 10, 32)
		if err != nil || !ip.IsLinkLocalUnicast() && !ip.IsLinkLocalMulticast() {
			return Addr{}, errors.New("a zone must be an interface number, on a link-local address")
		}
		a.Zone = uint32(n)
	}
	return checkPort(a)
}

func checkPort(a Addr) (Addr, error) {
	if a.Port == 0 {
		return Addr{}, errors.New("the port must be 1 to 65535: port 0 would be another one for every worker")
	}
	return a, nil
}

func parseUnix(path string) (Addr, error) {
	if after, found := strings.CutPrefix(path, "//"); found {
		path = after
	}
	switch {
	case strings.IndexByte(path, 0) >= 0:
		return Addr{}, errors.New("a path cannot have a zero byte")
	case len(path) < 2 || path[0] != '/' && path[0] != '@':
		return Addr{}, errors.New("the path of a unix socket must be absolute (unix:///run/app.sock) or abstract (unix:@name)")
	case len(path) > maxUnixPath:
		return Addr{}, fmt.Errorf("the path of a unix socket has at most %d bytes", maxUnixPath)
	}
	return Addr{Network: Unix, Path: path}, nil
}

// sockaddr returns the address as package unix wants it. An Addr that is none or Either has no such form.
func (a Addr) sockaddr() unix.Sockaddr {
	switch a.Network {
	case IPv4:
		return &unix.SockaddrInet4{Port: int(a.Port), Addr: a.IP.As4()}
	case IPv6:
		return &unix.SockaddrInet6{Port: int(a.Port), ZoneId: a.Zone, Addr: a.IP.As16()}
	default:
		return &unix.SockaddrUnix{Name: a.Path}
	}
}

// Sizes of what bind(2) accepts: net/ipv4/af_inet.c wants a whole struct sockaddr_in, net/ipv6/af_inet6.c SIN6_LEN_RFC2133 bytes.
const (
	sizeSockaddrIn  = unix.SizeofSockaddrInet4
	minSockaddrIn6  = 24
	sizeSockaddrIn6 = unix.SizeofSockaddrInet6
)

// decodeSockaddr reads a struct sockaddr_in or sockaddr_in6 as the kernel's bind would. ok is false for every other family and for an address that is too short,
// on which the kernel itself must decide. Port 0 is decoded like any other.
func decodeSockaddr(b []byte) (a Addr, ok bool) {
	if len(b) < sizeSockaddrIn {
		return Addr{}, false
	}
	family := binary.NativeEndian.Uint16(b)
	port := binary.BigEndian.Uint16(b[2:])
	switch {
	case family == unix.AF_INET || family == unix.AF_UNSPEC && binary.NativeEndian.Uint32(b[4:]) == 0:
		// AF_UNSPEC with the wildcard is taken for AF_INET (af_inet.c, "Compatibility games").
		return Addr{Network: IPv4, IP: netip.AddrFrom4([4]byte(b[4:8])), Port: port}, true
	case family == unix.AF_INET6 && len(b) >= minSockaddrIn6:
		a = Addr{Network: IPv6, IP: netip.AddrFrom16([16]byte(b[8:24])), Port: port}
		if len(b) >= sizeSockaddrIn6 && (a.IP.IsLinkLocalUnicast() || a.IP.IsLinkLocalMulticast()) {
			a.Zone = binary.NativeEndian.Uint32(b[24:])
		}
		return a, true
	default:
		return Addr{}, false
	}
}

// with returns Either as the wildcard address of a network.
func (a Addr) with(n Network) Addr {
	a.Network = n
	if n == IPv4 {
		a.IP = netip.IPv4Unspecified()
	} else {
		a.IP = netip.IPv6Unspecified()
	}
	return a
}
