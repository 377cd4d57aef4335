#!/usr/bin/env bash
# A file system without locks (NFS without its lock service, Lustre mounted without flock): every call for
# one fails, and results, checkpoints and activations are written all the same.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

import_sample "$work/model.h5"
head -n 2 "$ATOLL_SOURCE/jobs/sample-prompts.jsonl" >"$work/requests.jsonl"
options=(run --progress none --max-tokens 60 --model "$work/model.h5" --input "$work/requests.jsonl")
capture "$ATOLL" "${options[@]}" --output "$work/want.jsonl"
succeeds "with locks"

cat >"$work/locks.c" <<'C'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>

static int refuse(void) {
  errno = atoi(getenv("REFUSED_WITH"));
  return -1;
}
int flock(int file, int operation) {
  (void)file, (void)operation;
  return refuse();
}
#define CALL(name)                                                                   \
  int name(int file, int command, ...) {                                             \
    va_list rest;                                                                    \
    va_start(rest, command);                                                         \
    void* argument = va_arg(rest, void*);                                            \
    va_end(rest);                                                                    \
    if (command == F_SETLK || command == F_SETLKW || command == F_GETLK ||           \
        command == F_OFD_SETLK || command == F_OFD_SETLKW || command == F_OFD_GETLK) \
      return refuse();                                                               \
    int (*real)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, #name);    \
    return real(file, command, argument);                                            \
  }
CALL(fcntl)
CALL(fcntl64)
C
"${CC:-cc}" -shared -fPIC -O1 -o "$work/locks.so" "$work/locks.c" -ldl
for error in ENOLCK:37 ENOSYS:38 EOPNOTSUPP:95 ENOTSUPP:524; do
  name="${error%:*}"
  capture mpirun "${mpirun_flags[@]}" -n 2 -x LD_PRELOAD="$work/locks.so" -x REFUSED_WITH="${error#*:}" \
    "$ATOLL" "${options[@]}" --output "$work/$name.jsonl" --checkpoint-dir "$work/$name" \
    --checkpoint-every 3 --dump-activations 0 --activations "$work/$name.h5"
  succeeds "locks that fail with $name"
  same "locks that fail with $name" "$work/want.jsonl" "$work/$name.jsonl"
  for file in "$work/$name"/*.h5 "$work/$name.h5"; do
    capture "$ATOLL" inspect "$file"
    succeeds "$(basename "$file"), written where locks fail with $name"
  done
done
finish
