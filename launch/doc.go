// Package launch is the stub between fork and exec. Its invariant: after Main has begun, either the worker's program runs in this process, with an empty
// signal mask and default dispositions, or the process ends with 125, 126 or 127 and one line on stderr.
//
// skep starts a worker by executing itself under the name [Name]; the first argument is an encoded [Spec], then "--", then the command. Main does
// what can only be done from inside the new process (its user, its oom_score_adj, its seccomp filter, LISTEN_PID) and then calls execve(2).
//
// The runtime of Go has several threads. Main locks its goroutine to one of them, changes that thread alone and executes on it: execve ends the others,
// so that the program has the thread's ids and filter as a whole.
package launch
