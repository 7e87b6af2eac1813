#!/bin/sh
# Builds capture.bpf.o from capture.bpf.c with Debian 12's clang (package clang-14). The object is part of the
# repository, so that nobody who builds Holdfast needs clang. `build.sh FILE [OPTION…]` writes somewhere else, with
# more options for the compiler.
set -eu
cd "$(dirname "$0")"
object=${1:-capture.bpf.o}
[ $# = 0 ] || shift
clang-14 -O2 -g -target bpf -mcpu=v3 -Wall -Wno-unused-parameter -fno-ident -ffile-prefix-map="$PWD"=. \
  -c capture.bpf.c -o "$object" "$@"
