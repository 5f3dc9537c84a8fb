package initd

import (
	"time"

	"skep/compat"
	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/port"
	"skep/prestart/wait"
	"skep/sizing"
)

// Share says how workers get at one port.
type Share int

// The ways of --share.
const (
	// ShareAuto is bind sharing, or passing descriptors when --listen is given.
	ShareAuto Share = iota
	// ShareBind replaces the socket that a worker binds by a held one.
	ShareBind
	// ShareFDs passes the held sockets as descriptors from 3 on.
	ShareFDs
	// ShareNone leaves the workers' sockets alone.
	ShareNone
)

// Balance says how connections spread over the workers.
type Balance int

// The ways of --balance.
const (
	// BalanceSteer gives a connection to a worker that is free.
	BalanceSteer Balance = iota
	// BalanceHash leaves the choice to the kernel's hash of the addresses.
	BalanceHash
	// BalanceSingle has one socket for all workers.
	BalanceSingle
)

// Ready says what makes a worker count as ready.
type Ready int

// The ways of --ready.
const (
	// ReadyAuto is listen(2) seen, or with --listen the listener seen in use.
	ReadyAuto Ready = iota
	// ReadyListen is the same without ever counting a quiet worker as ready.
	ReadyListen
	// ReadyAlive is Policy.ReadyAfter alone.
	ReadyAlive
	// ReadyNotify is READY=1 of sd_notify(3).
	ReadyNotify
	// ReadyHTTP is an answer of 2xx or 3xx to a GET of Options.ReadyPath through the port.
	ReadyHTTP
)

// seen tells whether workers are ready when they are seen to listen.
func (r Ready) seen() bool { return r == ReadyAuto || r == ReadyListen }

// Listen is one address that skep opens before it starts anything.
type Listen struct {
	Name string // for LISTEN_FDNAMES and {fd:NAME}; empty when not named
	Addr port.Addr
}

// Options is all that Run needs to know. Package config makes it from flags
// and environment; every field has been checked there.
type Options struct {
	Command []string
	Environ []string
	// Warnings found while the options were read; they are logged first.
	Warnings []string

	// Boring is mode init: one command and nothing of a worker manager.
	Boring bool
	// Discover starts the command once and replicates it when it turns out to be
	// a server.
	Discover bool
	// Insist replicates even where one process looks like all the command wants.
	Insist bool

	// As is the init that skep was called as, nil under its own name.
	As *compat.Init

	Policy supervise.Policy
	Sizing sizing.Policy
	// Count is a number of workers that is fixed, 0 when it is computed.
	Count int

	Share      Share
	Listen     []Listen
	SharePorts []uint16
	Balance    Balance
	Ready      Ready
	ReadyPath  string
	// HangTimeout is how long a ready worker may not get on: accept nothing while its
	// queue holds connections, or have its accepting thread blocked while some are
	// open; 0 only steers around it.
	HangTimeout time.Duration
	// ExportWorkers gives the count to one copy that keeps its own workers.
	ExportWorkers bool

	KillGroup   bool
	ParentDeath int // signal that skep gets when its parent dies, 0 for none
	User        string
	KSM         bool

	// MaxWorkerMemory and MaxWorkerAge are where a worker is replaced gracefully:
	// bytes of its process tree, and its age, spread by a tenth both ways; 0 is
	// never.
	MaxWorkerMemory uint64
	MaxWorkerAge    time.Duration

	Prestart  PrestartOptions
	LogLevel  logger.Level
	LogFormat logger.Format
}

// PrestartOptions is what runs before the start.
type PrestartOptions struct {
	Waits       []wait.Target
	WaitTimeout time.Duration
	Steps       [][]string
	Dir         string
	DirGiven    bool // by hand: it has to exist then
	Timeout     time.Duration
	Retries     int
	Skip        bool
	Only        bool // skep prestart: end after the steps
	LockFile    string
	Key         string
}
