// Package port holds the listening sockets that workers share, and gives them to programs that know nothing of it. Its invariant: a held socket
// is closed by its Set alone, so what clients have queued in it survives any worker.
//
// A [Set] belongs to the goroutine that supervises (the loop): no method of it locks, and none blocks. There is one held socket for every slot and
// address, all of one address in one SO_REUSEPORT group, whose order in the kernel a [Group] follows exactly.
//
// Bind sharing: package launch has given the worker a seccomp filter that stops it in bind(2), listen(2) and setsockopt(2) of
// IPV6_V6ONLY. [Intercept], a goroutine per worker, looks at the stopped call (which may block, law 4), sends an [Ask] to the loop, and carries out the
// answer of [Set.Answer]: the slot's held socket takes the place of the worker's descriptor. Every answer comes with a [Fact] for the loop to log and
// decide on.
package port
