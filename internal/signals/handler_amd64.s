#include "textflag.h"

// handler(DI: signal, SI: *siginfo, DX: *ucontext) is called by the kernel on the
// alternate stack that the runtime gives every thread. It uses nothing of Go.
//
// A positive si_code says that the kernel raised the signal (sigaction(2)); a fault goes on to
// the runtime then. Otherwise si_pid is the sender. What is left becomes a byte in the
// pipe.
TEXT ·handler(SB),NOSPLIT|NOFRAME,$0
	MOVLQZX	DI, R8
	LEAQ	·faults(SB), CX
	CMPL	8(SI), $0 // si_code
	JGT	find
	MOVL	16(SI), AX // si_pid
	CMPL	AX, ·self(SB)
	JNE	sent
	LEAQ	·own(SB), CX
	MOVQ	(CX)(R8*8), AX
	TESTQ	AX, AX
	JNE	pass
	RET
find:
	MOVQ	(CX)(R8*8), AX
	TESTQ	AX, AX
	JEQ	sent
pass:
	JMP	AX
sent:
	CMPL	R8, $17 // CHLD
	JNE	write
	MOVL	$1, AX
	XCHGL	AX, ·child(SB)
	TESTL	AX, AX
	JNE	done // one is on its way
write:
	SUBQ	$24, SP
	MOVB	R8, (SP)
	MOVQ	R8, 8(SP)
	MOVQ	$1, AX // write
	MOVLQSX	·pipe(SB), DI
	MOVQ	SP, SI
	MOVQ	$1, DX
	SYSCALL
	MOVQ	8(SP), CX
	ADDQ	$24, SP
	CMPQ	AX, $1
	JEQ	done
	DECQ	CX
	LOCK
	BTSQ	CX, ·missed(SB)
done:
	RET // to the restorer

// func handlerPC() uintptr
TEXT ·handlerPC(SB),NOSPLIT,$0-8
	LEAQ	·handler(SB), AX
	MOVQ	AX, ret+0(FP)
	RET
