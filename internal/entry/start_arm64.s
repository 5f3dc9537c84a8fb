//go:build skep_entry

#include "textflag.h"

// The kernel's signal set with every signal in it (KILL and STOP it leaves out
// by itself).
DATA every<>+0(SB)/8, $-1
GLOBL every<>(SB), RODATA|NOPTR, $8

// MILD takes what makes a signal deadly off its entry in the runtime's table of 24
// bytes each, flags first, if the flags are as expected: it leaves "notify".
#define MILD(sig, flags) \
	MOVD	$runtime·sigtable+(sig*24)(SB), R0 \
	MOVW	(R0), R1 \
	CMPW	$flags, R1 \
	BNE	3(PC) \
	MOVD	$1, R1 \
	MOVW	R1, (R0)

// start is the first instruction of the program: rt_sigprocmask(SIG_BLOCK,
// every, nil, 8), and on to the runtime's own entry. The kernel passes everything on
// the stack, and the call leaves it alone.
TEXT ·start(SB),NOSPLIT|NOFRAME,$0
	MOVD	$135, R8
	MOVD	$0, R0
	MOVD	$every<>(SB), R1
	MOVD	$0, R2
	MOVD	$8, R3
	SVC
	MILD(1, 3)  // HUP: notify, kill
	MILD(2, 3)  // INT
	MILD(3, 5)  // QUIT: notify, throw
	MILD(6, 5)  // ABRT
	MILD(15, 3) // TERM
	MILD(17, 385) // CHLD: notify, unblock, ignore
	// The monitor of the runtime wakes up for its periodic collection, which package initd
	// makes when there is something to collect.
	MOVD	$runtime·forcegcperiod(SB), R0
	MOVD	(R0), R1
	MOVD	$120000000000, R2
	CMP	R2, R1
	BNE	3(PC)
	MOVD	$0x1000000000000000, R1
	MOVD	R1, (R0)
	B	_rt0_arm64_linux(SB)
