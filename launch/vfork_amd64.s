#include "textflag.h"

// func clone(flags uintptr) (pid, errno uintptr)
TEXT ·clone(SB),NOSPLIT|NOFRAME,$0-24
	MOVQ	flags+0(FP), DI
	XORL	SI, SI // stack: go on with this one
	XORL	DX, DX
	XORL	R10, R10
	XORL	R8, R8
	MOVL	$56, AX // clone
	POPQ	R12     // the return address
	SYSCALL
	PUSHQ	R12
	XORL	DX, DX
	CMPQ	AX, $-4095
	JCS	done
	NEGQ	AX
	MOVQ	AX, DX
	XORL	AX, AX
done:
	MOVQ	AX, pid+8(FP)
	MOVQ	DX, errno+16(FP)
	RET
