#include "textflag.h"

// handler(R0: signal, R1: *siginfo, R2: *ucontext) is called by the kernel on the
// alternate stack that the runtime gives every thread. It uses nothing of Go; see
// handler_amd64.s.
TEXT ·handler(SB),NOSPLIT|NOFRAME,$0
	MOVWU	R0, R9
	MOVD	$·faults(SB), R3
	MOVW	8(R1), R4 // si_code
	CMPW	$0, R4
	BGT	find
	MOVW	16(R1), R4 // si_pid
	MOVW	·self(SB), R5
	CMPW	R4, R5
	BNE	sent
	MOVD	$·own(SB), R3
	MOVD	(R3)(R9<<3), R3
	CBNZ	R3, pass
	RET
find:
	MOVD	(R3)(R9<<3), R3
	CBZ	R3, sent
pass:
	B	(R3)
sent:
	CMPW	$17, R9 // CHLD
	BNE	write
	MOVD	$·child(SB), R3
	MOVD	$1, R4
swap:
	LDAXRW	(R3), R5
	STLXRW	R4, (R3), R6
	CBNZW	R6, swap
	CBNZW	R5, done // one is on its way
write:
	SUB	$16, RSP
	MOVB	R9, (RSP)
	MOVD	$64, R8 // write
	MOVW	·pipe(SB), R0
	MOVD	RSP, R1
	MOVD	$1, R2
	SVC
	ADD	$16, RSP
	CMP	$1, R0
	BEQ	done
	SUB	$1, R9
	MOVD	$1, R4
	LSL	R9, R4, R4
	MOVD	$·missed(SB), R3
again:
	LDAXR	(R3), R5
	ORR	R4, R5
	STLXR	R5, (R3), R6
	CBNZ	R6, again
done:
	RET // to the kernel's own way back

// func handlerPC() uintptr
TEXT ·handlerPC(SB),NOSPLIT,$0-8
	MOVD	$·handler(SB), R0
	MOVD	R0, ret+0(FP)
	RET
