// Package dial connects to an address, looking up its name if it has one.
//
// It stands for package net in the child that waits: net would add 0.56 MB to
// the one binary for what is here in two files (docs/adr/0002-size.md). It is
// for that child only; PID 1 neither dials nor looks up names.
package dial

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// TCP connects to host:port, with brackets around an IPv6 address. It tries the
// addresses of a name one after another, in the order of the answer, sharing the
// time that is left between them (RFC 8305 would try them side by side, which a
// wait that tries again anyway has no need of). The file is non-blocking; its
// deadlines work.
func TCP(ctx context.Context, address string) (*os.File, error) {
	host, port, err := split(address)
	if err != nil {
		return nil, err
	}
	addrs, err := lookup(ctx, host, system)
	if err != nil {
		return nil, err
	}
	var first error
	for i, addr := range addrs {
		f, err := connectWithin(ctx, len(addrs)-i, family(addr), unix.SOCK_STREAM, sockaddr(addr, port))
		if err == nil {
			return f, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// Source is where TCP connects from over IPv4; nil leaves that to the kernel. It
// is set before the first connection.
var Source *unix.SockaddrInet4

// Unix connects to the unix socket at path, whose type is kind: one of
// unix.SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM.
func Unix(ctx context.Context, path string, kind int) (*os.File, error) {
	return connectWithin(ctx, 1, unix.AF_UNIX, kind, &unix.SockaddrUnix{Name: path})
}

// split takes host and port of an address apart.
func split(address string) (host string, port uint16, err error) {
	for i := len(address) - 1; i >= 0; i-- {
		if address[i] != ':' {
			continue
		}
		n, err := strconv.ParseUint(address[i+1:], 10, 16)
		host = address[:i]
		if len(host) > 1 && host[0] == '[' && host[len(host)-1] == ']' {
			host = host[1 : len(host)-1]
		}
		if err == nil && host != "" {
			return host, uint16(n), nil
		}
		break
	}
	return "", 0, errors.New("cannot dial " + strconv.Quote(address) + ": want HOST:PORT")
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	zone, _ := strconv.ParseUint(a.Zone(), 10, 32) // a number, or none
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port), ZoneId: uint32(zone)}
}

// connectWithin connects within a share of the time that ctx leaves.
func connectWithin(ctx context.Context, shares, family, kind int, to unix.Sockaddr) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if from := Source; from != nil && family == unix.AF_INET {
		err = unix.Bind(fd, from)
	}
	if err == nil {
		err = unix.Connect(fd, to)
	}
	f := os.NewFile(uintptr(fd), "connection")
	if err == unix.EINPROGRESS || err == unix.EINTR {
		err = finish(ctx, f, shares)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// finish waits for the end of a connect(2) that goes on in the background: the
// socket becomes writable and SO_ERROR says how it went.
func finish(ctx context.Context, f *os.File, shares int) error {
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline) / time.Duration(shares)
		if err := f.SetWriteDeadline(time.Now().Add(left)); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var outcome error
	err = conn.Write(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(poll, 0); n == 0 || err != nil {
			return false
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		outcome = err
		return true
	})
	if err != nil {
		return err
	}
	return outcome
}
