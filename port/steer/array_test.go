package steer

// Array is an exact model of the array in which the kernel keeps the listening sockets of one SO_REUSEPORT group; a program's answer is an index into
// it. listen(2) appends (reuseport_add_sock in net/core/sock_reuseport.c); the last close(2) or a shutdown(2) of a listener moves the last entry into the
// gap (reuseport_detach_sock): ABCDE without B is AECD. A socket that is bound but has not called listen is not in it. A socket is in the group until
// the last descriptor of it, in any process, is closed.
//
// Members are known by numbers that the caller chooses. The zero value is an empty group. It is not for concurrent use.
type Array struct {
	ids []int
}

// Listen notes that the socket called listen(2) and now is the last member. A socket that already listens keeps its place, as in the kernel, where a
// repeated listen only changes the backlog.
func (a *Array) Listen(id int) {
	if a.Index(id) < 0 {
		a.ids = append(a.ids, id)
	}
}

// Remove notes that the socket was closed by its last holder, or was shut down. Without the member it does nothing.
func (a *Array) Remove(id int) {
	i := a.Index(id)
	if i < 0 {
		return
	}
	last := len(a.ids) - 1
	a.ids[i] = a.ids[last]
	a.ids = a.ids[:last]
}

// Index is the member's place in the kernel's array, or -1.
func (a *Array) Index(id int) int {
	for i, x := range a.ids {
		if x == id {
			return i
		}
	}
	return -1
}

// Len is the number of members.
func (a *Array) Len() int { return len(a.ids) }

// At is the member at index i, which must be in range.
func (a *Array) At(i int) int { return a.ids[i] }
