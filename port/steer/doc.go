// Package steer decides which worker of a SO_REUSEPORT group gets the next connection.
//
// The kernel's own choice is a hash of the addresses: it gives connections to workers that are blocked, and to sockets whose worker is dead. Steering
// replaces that choice. A Poller reads, when a connection has come and a few times in between, how long each held socket's accept queue is, whether the thread
// that accepts is waiting for work, and how many descriptors the worker has open. Choose turns that into the list of members that may be given a
// connection, and Program turns the list into a classic BPF program that the kernel runs for each SYN. The kernel then needs nothing from skep: a
// program that is in place goes on working when skep stops, or is slow.
//
// Program and Choose are pure. The system calls are in the files whose names begin with steer_.
package steer
