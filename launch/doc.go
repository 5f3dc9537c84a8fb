// Package launch starts processes: it finds the program, forks, and does between fork and
// exec what can only be done from inside the new process (its group and terminal, its user,
// its oom_score_adj, its seccomp filter, LISTEN_PID).
//
// Its invariant: either the program runs, with an empty signal mask and default
// dispositions, or there is no process and Start has returned the reason.
package launch
