#include "textflag.h"

// func spawn() int
TEXT ·spawn(SB),NOSPLIT,$0-8
	MOVD	$220, R8    // clone
	MOVD	$0x8111, R0 // CLONE_PARENT | CLONE_VM | SIGCHLD
	MOVD	$0, R1
	MOVD	$0, R2
	MOVD	$0, R3
	MOVD	$0, R4
	SVC
	CBNZ	R0, maker
	MOVD	$93, R8 // exit
	MOVD	$0, R0
	SVC
maker:
	MOVD	R0, ret+0(FP)
	RET
