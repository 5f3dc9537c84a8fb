// Package proc reads facts about other processes from a proc file system: their children, memory, sockets, locks,
// processor time and the runtime they are built on.
//
// Every read of another process's files can stall for as long as that process likes: smaps and maps take its memory
// lock, and a process that is being dumped or stopped in a page fault holds it. So nothing here may be called from the
// loop (law 4); call it from a goroutine and give the answer a deadline.
//
// Processes come and go while they are read. A process that ended in between is an outcome, not an error (law 6): it is
// left out of sums and lists. Where reading is refused (another user's process without ptrace access, see
// proc_pid_fd(5)), the error says so.
//
// Sources: proc(5) and its pages, Documentation/filesystems/proc.rst of the kernel.
package proc
