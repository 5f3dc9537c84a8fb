package port

import "slices"

// Group is the SO_REUSEPORT group of one address: the held sockets of all slots on it. Like its Set it belongs to the loop.
type Group struct {
	// Addr is the address all sockets of the group are bound to.
	Addr Addr
	// held is every socket, in the order of Hold; listening is the kernel's array.
	held      []*Held
	listening []*Held
}

// Listening returns the listening sockets in the order of the kernel's array, so that the number a steering program returns is an index into it. The kernel
// appends on listen(2) and on leaving (close, shutdown) puts the last socket in the place of the one that left (reuseport_add_sock and __reuseport_detach_sock in
// net/core/sock_reuseport.c); sockets that are only bound are not in the array. The slice is the caller's to read until the next change of the Set.
func (g *Group) Listening() []*Held {
	if g == nil {
		return nil
	}
	return g.listening
}

// Held returns the sockets of the group, listening or not, in the order in which they were made.
func (g *Group) Held() []*Held {
	if g == nil {
		return nil
	}
	return slices.Clone(g.held)
}

func (g *Group) append(h *Held) {
	g.listening = append(g.listening, h)
}

// swapRemove takes h out of the array as the kernel does. It does nothing when h is not in it.
func (g *Group) swapRemove(h *Held) {
	i := slices.Index(g.listening, h)
	if i < 0 {
		return
	}
	last := len(g.listening) - 1
	g.listening[i] = g.listening[last]
	g.listening[last] = nil
	g.listening = g.listening[:last]
}
