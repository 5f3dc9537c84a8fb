//go:build skep_entry

#include "textflag.h"

// The kernel's signal set with every signal in it (KILL and STOP it leaves out
// by itself).
DATA every<>+0(SB)/8, $-1
GLOBL every<>(SB), RODATA|NOPTR, $8

// MILD takes what makes a signal deadly off its entry in the runtime's table of 24
// bytes each, flags first, if the flags are as expected: it leaves "notify".
#define MILD(sig, flags) \
	CMPL	runtime·sigtable+(sig*24)(SB), $flags \
	JNE	2(PC) \
	MOVL	$1, runtime·sigtable+(sig*24)(SB)

// start is the first instruction of the program: rt_sigprocmask(SIG_BLOCK,
// every, nil, 8), and on to the runtime's own entry. The kernel passes everything on
// the stack (System V ABI, AMD64 supplement, 3.4.1), and the call leaves it alone.
TEXT ·start(SB),NOSPLIT|NOFRAME,$0
	MOVQ	$14, AX
	MOVQ	$0, DI
	LEAQ	every<>(SB), SI
	MOVQ	$0, DX
	MOVQ	$8, R10
	SYSCALL
	MILD(1, 3)  // HUP: notify, kill
	MILD(2, 3)  // INT
	MILD(3, 5)  // QUIT: notify, throw
	MILD(6, 5)  // ABRT
	MILD(15, 3) // TERM
	MILD(17, 385) // CHLD: notify, unblock, ignore
	// The monitor of the runtime wakes up for its periodic collection, which package initd
	// makes when there is something to collect.
	MOVQ	$120000000000, AX
	CMPQ	AX, runtime·forcegcperiod(SB)
	JNE	3(PC)
	MOVQ	$0x1000000000000000, AX
	MOVQ	AX, runtime·forcegcperiod(SB)
	JMP	_rt0_amd64_linux(SB)
