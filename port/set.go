package port

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
)

// SharedSlot is the slot of a held socket that all slots use: a unix socket, or any with Options.Single.
const SharedSlot = -1

// maxBacklog bounds the accept queue of a held socket. More connections than that are better refused than kept waiting.
const maxBacklog = 4096

// Options of a Set.
type Options struct {
	// Single makes one socket per address for all slots instead of a group (--balance single).
	Single bool
	// SharePorts are the ports bind sharing is for (--share-port); empty means every port. Hold is not bound to them.
	SharePorts []uint16
}

// Set is all held sockets. It belongs to one goroutine, the loop; no method blocks.
//
// A slot is any number from 0 on that the loop chooses: a worker that is to run beside the old one of its slot gets a number of its own, and with it
// sockets of its own. Close comes when Intercept of the slot's workers has returned, or a worker that still lives makes new ones by binding again.
type Set struct {
	options  Options
	backlog  int
	groups   map[Addr]*Group
	byInode  map[uint64]*Held
	byID     map[uint64]*Held
	resolved map[Addr]Addr // Either → what it became
	lastID   uint64
	changes  uint64   // of what Generation covers
	hangups  *os.File // an epoll set of the sockets that listen or were bound by a worker
	hangupFD int
}

// Held is a held socket.
type Held struct {
	// Slot owns the socket, or SharedSlot.
	Slot int
	// Addr is what the socket is bound to, never Either.
	Addr Addr

	fd        int
	inode     uint64
	id        uint64
	listening bool
	given     bool // to a worker at some time, so that a process may own it beside skep
	kept      bool // Hold asked for it, and not a worker's bind
	claimed   bool // bound by the slot's worker since Renew
	abandoned bool // closed by the slot's worker, which lives on
	watched   bool // Watch tells of it
	slots     []int
	bound     socketFile
}

// FD is the descriptor, valid until the Set closes it. It is close-on-exec; it may be passed to a child (fork and exec) or duplicated, never closed.
func (h *Held) FD() int { return h.fd }

// Inode is the number of the socket as /proc/PID/fd/N shows it.
func (h *Held) Inode() uint64 { return h.inode }

// Listening says whether listen(2) has been done. Connections then queue whether or not a worker is alive.
func (h *Held) Listening() bool { return h.listening }

// Used says whether the slot's worker may accept from the socket: it was passed it, or has bound it since the last Renew, and Abandon was not called since.
func (h *Held) Used() bool { return (h.claimed || h.kept || h.Slot == SharedSlot) && !h.abandoned }

// NewSet returns an empty Set. It reads net.core.somaxconn, so it is called before the loop.
func NewSet(options Options) (*Set, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // So that os.NewFile gives it to the netpoller.
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &Set{
		options:  options,
		backlog:  readBacklog(),
		groups:   make(map[Addr]*Group),
		byInode:  make(map[uint64]*Held),
		byID:     make(map[uint64]*Held),
		resolved: make(map[Addr]Addr),
		hangups:  os.NewFile(uintptr(fd), "epoll"),
		hangupFD: fd,
	}, nil
}

// readBacklog returns min(somaxconn, maxBacklog); listen(2) would cut a larger value silently.
func readBacklog() int {
	text, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		return unix.SOMAXCONN
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || n < 1 {
		return unix.SOMAXCONN
	}
	return min(n, maxBacklog)
}

// Generation is another number after everything that has changed which sockets listen, the order of a group, or what Used says.
func (s *Set) Generation() uint64 { return s.changes }

// Shares says whether bind sharing is for this port.
func (s *Set) Shares(port uint16) bool {
	return len(s.options.SharePorts) == 0 || slices.Contains(s.options.SharePorts, port)
}

// Hold returns the slot's held socket on a, and makes it, bound and not yet listening, when there is none. With Options.Single and for unix sockets all
// slots get the same one. An error names the address and keeps the number (errors.Is): EADDRINUSE when another program has the port,
// with SO_REUSEPORT or without; then nothing is held.
func (s *Set) Hold(slot int, a Addr) (*Held, error) {
	h, err := s.hold(slot, a)
	if err == nil {
		h.kept = true
	}
	return h, err
}

func (s *Set) hold(slot int, a Addr) (*Held, error) {
	if to, found := s.resolved[a]; found {
		a = to
	}
	if h := s.find(slot, a); h != nil {
		return h, nil
	}
	if h := s.find(SharedSlot, a); h != nil {
		h.slots = append(h.slots, slot)
		return h, nil
	}
	h, err := s.open(slot, a)
	if err != nil {
		return nil, fmt.Errorf("cannot hold %s: %w", a, err)
	}
	if h.Addr != a {
		s.resolved[a] = h.Addr
	}
	s.lastID++
	h.id = s.lastID
	s.byID[h.id] = h
	s.byInode[h.inode] = h
	g := s.groups[h.Addr]
	if g == nil {
		g = &Group{Addr: h.Addr}
		s.groups[h.Addr] = g
	}
	g.held = append(g.held, h)
	return h, nil
}

// find returns the socket that slot uses on a, nil when there is none yet. For SharedSlot it returns the shared socket whoever uses it.
func (s *Set) find(slot int, a Addr) *Held {
	g := s.groups[a]
	if g == nil {
		return nil
	}
	for _, h := range g.held {
		if h.Slot == slot || slices.Contains(h.slots, slot) {
			return h
		}
	}
	return nil
}

// open makes the socket of Hold.
func (s *Set) open(slot int, a Addr) (*Held, error) {
	h := &Held{Slot: slot, Addr: a, slots: []int{slot}}
	if s.options.Single || a.Network == Unix {
		h.Slot = SharedSlot
	}
	var err error
	switch a.Network {
	case Unix:
		h.fd, h.bound, err = openUnix(a)
	case Either:
		h.Addr = a.with(IPv6)
		h.fd, err = s.openTCP(h.Addr)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
			// No IPv6 in this kernel, or switched off in this namespace.
			h.Addr = a.with(IPv4)
			h.fd, err = s.openTCP(h.Addr)
		}
	case IPv4, IPv6:
		h.fd, err = s.openTCP(a)
	default:
		err = unix.EAFNOSUPPORT
	}
	if err != nil {
		return nil, err
	}
	if h.inode, err = sys.Inode(h.fd); err != nil {
		_ = unix.Close(h.fd)
		return nil, err
	}
	return h, nil
}

// openTCP makes a bound socket of the group of a. The first one of a group must not join a group of another program that also uses SO_REUSEPORT
// under the same user: a bind without SO_REUSEPORT tells, as it would have told the worker. A set that holds the port under another address already
// would find itself, and does not ask.
func (s *Set) openTCP(a Addr) (int, error) {
	if !s.holdsPort(a.Port) {
		probe, err := bindTCP(a, false)
		if err != nil {
			return -1, err
		}
		_ = unix.Close(probe)
	}
	return bindTCP(a, true)
}

func (s *Set) holdsPort(port uint16) bool {
	for a := range s.groups {
		if a.TCP() && a.Port == port {
			return true
		}
	}
	return false
}

// bindTCP returns a bound TCP socket. TCP_NODELAY is inherited by what is accepted; without it servers that write a response in two pieces wait 40 ms for
// the client's delayed acknowledgement.
func bindTCP(a Addr, reusePort bool) (int, error) {
	family := unix.AF_INET
	if a.Network == IPv6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := prepareTCP(fd, a, reusePort); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func prepareTCP(fd int, a Addr, reusePort bool) error {
	type option struct{ level, name, value int }
	options := []option{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	}
	if reusePort {
		options = append(options, option{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1})
	}
	if a.Network == IPv6 {
		only := 0
		if a.V6Only {
			only = 1
		}
		options = append(options, option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, a.sockaddr()))
}

// Listen makes the held socket listen, or listen again after a worker has shut it down; on one that listens it changes nothing. EADDRINUSE
// means that another program began to listen since the bind.
func (s *Set) Listen(h *Held) error {
	g := s.groups[h.Addr]
	if h.Addr.TCP() {
		if listens(h.fd) {
			return nil
		}
		if h.listening {
			g.swapRemove(h) // Shut down, and the news has not come through Watch yet.
			h.listening = false
			s.changes++
		}
	}
	if err := unix.Listen(h.fd, s.backlog); err != nil {
		return fmt.Errorf("cannot listen on %s: %w", h.Addr, os.NewSyscallError("listen", err))
	}
	if h.listening {
		return nil // A unix socket again.
	}
	h.listening = true
	s.changes++
	g.append(h)
	return s.watch(h, 0) // EPOLLHUP comes always, and connections wake nobody
}

// watch has Watch tell of the socket. Edge-triggered, as a socket that is not listened on again (because listen failed) would report it without end.
func (s *Set) watch(h *Held, events uint32) error {
	event := unix.EpollEvent{Events: unix.EPOLLET | events}
	event.Fd, event.Pad = int32(h.id), int32(h.id>>32)
	op := unix.EPOLL_CTL_ADD
	if h.watched {
		op = unix.EPOLL_CTL_MOD
	}
	if err := unix.EpollCtl(s.hangupFD, op, h.fd, &event); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	h.watched = true
	return nil
}

// States of net/tcp_states.h.
const (
	stateClose  = 7
	stateListen = 10
)

// state is the state of a TCP socket, by the first byte of struct tcp_info (tcp(7)); that of a closed one when it cannot be read.
func state(fd int) uint8 {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return stateClose
	}
	return info.State
}

func listens(fd int) bool { return state(fd) == stateListen }

// connects says whether a worker has made a client of the socket: a program may bind one to a port of its choice before connect(2).
func (h *Held) connects() bool {
	if h.listening || h.kept || !h.Addr.TCP() {
		return false
	}
	st := state(h.fd)
	return st != stateClose && st != stateListen
}

// group returns the group of an address, nil when nothing is held there. a may be Either.
func (s *Set) group(a Addr) *Group {
	if to, found := s.resolved[a]; found {
		a = to
	}
	return s.groups[a]
}

// Groups returns all groups, ordered by the text of their address.
func (s *Set) Groups() []*Group {
	all := make([]*Group, 0, len(s.groups))
	for _, g := range s.groups {
		all = append(all, g)
	}
	sort.Slice(all, func(i, j int) bool {
		a, b := all[i], all[j]
		if x, y := a.Addr.String(), b.Addr.String(); x != y {
			return x < y
		}
		return a.held[0].id < b.held[0].id
	})
	return all
}

// Slots returns the slots that have a socket on a, in ascending order.
func (s *Set) Slots(a Addr) []int {
	var slots []int
	for _, h := range s.group(a).Held() {
		slots = append(slots, h.slots...)
	}
	sort.Slice(slots, func(i, j int) bool { return slots[i] < slots[j] })
	return slots
}

// Held returns the sockets of a slot in the order in which they were made, the shared ones it uses among them.
func (s *Set) Held(slot int) []*Held {
	var held []*Held
	for _, h := range s.byID {
		if slices.Contains(h.slots, slot) {
			held = append(held, h)
		}
	}
	sort.Slice(held, func(i, j int) bool { return held[i].id < held[j].id })
	return held
}

// Close ends the slot's sockets. Connections in their queues are reset, also when a process still has a copy: the socket leaves its group now and not
// when the last copy is closed. A shared socket ends with the last of its slots.
func (s *Set) Close(slot int) {
	for _, h := range s.Held(slot) {
		s.Drop(slot, h)
	}
}

// Drop is Close for one socket of the slot.
func (s *Set) Drop(slot int, h *Held) {
	h.slots = slices.DeleteFunc(h.slots, func(each int) bool { return each == slot })
	if len(h.slots) == 0 && h.fd >= 0 {
		s.close(h)
	}
}

// Renew says that the slot's next worker is about to start. What it binds from now on is not Stale.
func (s *Set) Renew(slot int) {
	for _, h := range s.Held(slot) {
		if h.Slot != SharedSlot {
			h.claimed, h.abandoned = false, false
			s.changes++
		}
	}
}

// Abandon says that the slot's worker lives and has no copy of the socket any more. Its queue waits for the next bind, or the next worker.
func (s *Set) Abandon(h *Held) {
	h.abandoned = true
	s.changes++
}

// Stale returns, in the order in which they were made, the sockets that a worker had bound before the last Renew of their slot and none has bound since: a program
// that picks its port anew at every start, or looks for a free one, leaves one behind each time, on which clients wait for nobody. Sockets that Hold was asked for, and shared ones, are never stale. They are to be ended by Drop when the slot's worker has been ready for a while.
func (s *Set) Stale() []*Held {
	var stale []*Held
	for _, h := range s.byID {
		if h.Slot != SharedSlot && !h.kept && !h.claimed {
			stale = append(stale, h)
		}
	}
	sort.Slice(stale, func(i, j int) bool { return stale[i].id < stale[j].id })
	return stale
}

// CloseAll ends all sockets and removes the files of unix sockets. The Set must not be used afterwards.
func (s *Set) CloseAll() {
	for _, h := range s.byID {
		s.close(h)
	}
	_ = s.hangups.Close()
}

func (s *Set) close(h *Held) {
	g := s.groups[h.Addr]
	s.changes++
	if h.watched {
		_ = unix.EpollCtl(s.hangupFD, unix.EPOLL_CTL_DEL, h.fd, nil)
	}
	if h.listening {
		_ = unix.Shutdown(h.fd, unix.SHUT_RDWR)
		g.swapRemove(h)
	}
	_ = unix.Close(h.fd)
	h.bound.remove()
	g.held = slices.DeleteFunc(g.held, func(each *Held) bool { return each == h })
	if len(g.held) == 0 {
		delete(s.groups, h.Addr)
		for from, to := range s.resolved {
			if to == h.Addr {
				delete(s.resolved, from)
			}
		}
	}
	delete(s.byID, h.id)
	delete(s.byInode, h.inode)
	h.fd, h.listening = -1, false
}
