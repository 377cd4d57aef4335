#!/usr/bin/env bash
# Results have other bits with other instruction sets: the ranks of a run agree on one, and a resumed
# run keeps that of the run before or is refused.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

import_sample "$work/m.h5"
python3 - >"$work/r.jsonl" <<'PY'
import json
for i in range(6):
    print(json.dumps({"id": str(i), "prompt": "Ge1:1 " * (i + 1), "max_tokens": 1 if i == 0 else 250}))
PY
options=(run --model "$work/m.h5" --input "$work/r.jsonl" --output "$work/o" --backend cpu
  --progress none --report "$work/report.json")
computed_with() { # WHAT ISA
  json_check "$1" "$work/report.json" <<<"assert lines[0]['isa'] == '$2', lines[0]['isa']"
}
capture "$ATOLL" "${options[@]}"
succeeds "the widest" || finish
widest="$(python3 -c "import json; print(json.load(open('$work/report.json'))['isa'])")"

# The ranks agree.
capture "$ATOLL" "${options[@]}" --isa avx2
succeeds "--isa avx2" && computed_with "--isa avx2" avx2
mv "$work/o" "$work/avx2"
# shellcheck disable=SC2016  # the rank's variables
capture mpirun "${mpirun_flags[@]}" -n 3 bash -c \
  '((OMPI_COMM_WORLD_RANK != 1)) || export ONEDNN_MAX_CPU_ISA=AVX2; exec "$@"' bash \
  "$ATOLL" "${options[@]}"
succeeds "one rank of three has AVX2 only" && computed_with "one rank of three has AVX2 only" avx2
same "the ranks agree on AVX2" "$work/avx2" "$work/o"
capture env ONEDNN_MAX_CPU_ISA=AVX2 "$ATOLL" "${options[@]}" --isa avx512
refused "a wish that rank 0 cannot fulfil" 1 'isa avx512: the CPU of rank 0 has only avx2'
capture "$ATOLL" "${options[@]}" --isa avx1024
refused "an unknown wish" 2 'isa'

# interrupted OPTIONS...: a run that is killed between two passes, when it has a result: ranks meet once a
# pass, and of 250 passes the second ends the first request.
interrupted() {
  rm -f "$work"/o*
  capture mpirun "${mpirun_flags[@]}" -n 1 -x LD_PRELOAD="$fault_library" \
    -x ATOLL_FAULT="0 MPI_Iallgather 150 kill" "$ATOLL" "${options[@]}" "$@"
  [[ -s "$work/o.journal" && ! -e "$work/o" ]] || failed "the run was not interrupted"
}
interrupted --isa avx2
cp "$work/o.journal" "$work/kept.journal"
capture "$ATOLL" "${options[@]}" --resume
succeeds "to resume a run of AVX2" && computed_with "a resumed run goes on with what it had" avx2
same "results of a resumed run" "$work/avx2" "$work/o"

# As if the run before had been on another CPU: its journal's header says so.
rewritten() { # PYTHON: on `run`, the identity in the header
  rm -f "$work"/o*
  python3 - "$1" "$work/kept.journal" "$work/o.journal" <<'PY'
import ctypes, json, sys

xxhash = ctypes.CDLL("libxxhash.so.0")
xxhash.XXH3_64bits.restype = ctypes.c_uint64
program, old, new = sys.argv[1:]
header, rest = open(old, "rb").read().split(b"\n", 1)
result = json.loads(header)["result"]
run = result["run"]
exec(program)
text = json.dumps(result, separators=(",", ":"))
line = ("0 " + text).encode()
header = '{"line":0,"xxh3_64":"%016x","result":%s}\n' % (
    xxhash.XXH3_64bits(line, ctypes.c_size_t(len(line))), text)
open(new, "wb").write(header.encode() + rest)
PY
}
rewritten "pass"
capture "$ATOLL" "${options[@]}" --resume
succeeds "a header written anew, unchanged"
same "results with a header written anew" "$work/avx2" "$work/o"
rewritten "del run['isa']"
capture "$ATOLL" "${options[@]}" --isa avx2 --resume
refused "a journal that does not say" 1 'cannot resume: .*isa was unknown and is avx2'
rewritten "run['isa'] = 'avx512_amx'"
capture env ONEDNN_MAX_CPU_ISA=AVX2 "$ATOLL" "${options[@]}" --resume
refused "a run of a CPU with AMX, resumed with AVX2" 1 \
  'cannot resume: the interrupted run computed with avx512_amx, .* rank 0 .*avx2'
rewritten "run['isa'] = 'avx512'"
capture "$ATOLL" "${options[@]}" --isa avx2 --resume
refused "a wish against the journal" 1 'cannot resume: .*isa was avx512 and is avx2'

# With more than one: none takes over what another began.
if [[ "$widest" == avx2 ]]; then
  echo "not tried: a run of $widest beside one of AVX2 (this CPU has no AVX-512)"
else
  interrupted --isa "$widest"
  capture "$ATOLL" "${options[@]}" --isa avx2 --resume
  refused "a wish against the run before" 1 "isa was $widest and is avx2"
  capture env ONEDNN_MAX_CPU_ISA=AVX2 "$ATOLL" "${options[@]}" --resume
  refused "a lesser CPU resumes" 1 "cannot resume: the interrupted run computed with $widest"
  capture "$ATOLL" "${options[@]}" --resume
  succeeds "the same CPU resumes" && computed_with "the same CPU resumes" "$widest"
fi
finish
