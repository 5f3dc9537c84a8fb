#include "textflag.h"

// func spawn() int
TEXT ·spawn(SB),NOSPLIT,$0-8
	MOVQ	$56, AX     // clone
	MOVQ	$0x8111, DI // CLONE_PARENT | CLONE_VM | SIGCHLD
	MOVQ	$0, SI
	MOVQ	$0, DX
	MOVQ	$0, R10
	MOVQ	$0, R8
	SYSCALL
	CMPQ	AX, $0
	JNE	maker
	MOVQ	$60, AX // exit
	MOVQ	$0, DI
	SYSCALL
maker:
	MOVQ	AX, ret+0(FP)
	RET
