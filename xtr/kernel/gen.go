package kernel

// The objects are for little-endian machines only; the code computes addresses' hashes as they do.
// They are committed, so that users need no compiler: regenerate them after a change to bpf/.
//
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -cflags "-O2 -g -mcpu=v3 -Wall -Werror -ffile-prefix-map=../../= -fdebug-compilation-dir=." tabi bpf/tabi.c
