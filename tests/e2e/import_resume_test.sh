#!/usr/bin/env bash
# An import whose ranks were killed goes on: what is written and whole is not written again, what is
# damaged is, other files begin anew, and the model file is that of an import in one go.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
folder="$work/folder"
cp -r "$ATOLL_SOURCE/tests/data/families/deepseek_v3" "$folder"
weights="$folder/model.safetensors"
cp -p "$weights" "$work/weights"
output="$work/model.h5"
partial="$output.partial"
options=() # of imports that are killed and go on

capture "$ATOLL" import "$folder" --output "$work/expected.h5"
succeeds "import in one go"

# killed: leaves what an import on two ranks has written when it dies as it ends; sets `lines`.
killed() {
  local calls
  for calls in {4..20}; do
    rm -f "$output" "$partial"*
    capture mpirun "${mpirun_flags[@]}" -n 2 -x LD_PRELOAD="$fault_library" \
      -x ATOLL_FAULT="1 MPI_Allreduce $calls kill" "$ATOLL" import "$folder" --output "$output" "${options[@]}"
    lines="$(cat "$partial".done.* 2>/dev/null | grep -vc atoll-import || true)"
    ((lines > 20)) && break
  done
  if ((code != 0 && lines > 20)) && [[ ! -e "$output" ]]; then passed; else
    failed "a killed import left $lines matrices, exit code $code"
  fi
}

# The same sizes and times, other numbers: what the killed import wrote is not read again.
spoil() {
  python3 - "$weights" <<'EOP'
import json, struct, sys

with open(sys.argv[1], "r+b") as file:
    size = struct.unpack("<Q", file.read(8))[0]
    rest = len(file.read()) - size
    file.seek(8 + size)
    file.write(bytes(rest))
EOP
  touch -r "$work/weights" "$weights"
}
restore() { cp -p "$work/weights" "$weights"; }
# goes_on WHAT RANKS: the import succeeds, says that it goes on, leaves nothing else, and its file is right.
goes_on() {
  if (($2 == 1)); then capture "$ATOLL" import "$folder" --output "$output" "${options[@]}"; else
    atoll_on "$2" import "$folder" --output "$output" "${options[@]}"
  fi
  succeeds "$1" || true
  if grep -q "goes on with what an interrupted import" "$work/stderr"; then passed; else failed "$1: not said"; fi
  same "$1" "$work/expected.h5" "$output"
  if compgen -G "$partial*" >/dev/null; then failed "$1: files are left"; else passed; fi
}

killed
spoil
goes_on "on other ranks, from other weights" 3
restore

killed
python3 - "$partial" <<'EOP'
import os, sys

with open(sys.argv[1], "r+b") as file:  # a byte near the end of what is there, and the last ones not at all
    file.seek(os.path.getsize(sys.argv[1]) * 2 // 3)
    byte = file.read(1)[0] ^ 1
    file.seek(-1, 1)
    file.write(bytes([byte]))
EOP
for list in "$partial".done.*; do
  head -n 12 "$list" >"$work/list"
  cp "$work/list" "$list"
  printf '7 00' >>"$list" # cut off
done
goes_on "after damage" 1

# Of other files nothing is taken up.
killed
touch "$weights"
capture "$ATOLL" import "$folder" --output "$output"
succeeds "of other files" || true
if grep -q "goes on" "$work/stderr"; then failed "it went on with what other files left"; else passed; fi
same "of other files" "$work/expected.h5" "$output"

# Values that are not finite are named whoever wrote them, before or now.
# names_again WHAT LEAST: so of what is in the folder; LEAST tensors or more have one NaN.
names_again() {
  capture "$ATOLL" import "$folder" --output "$work/expected.h5" "${options[@]}"
  succeeds "$1: import in one go" || true
  named >"$work/expected.named"
  if (($(grep -c "(1 NaN" "$work/expected.named") >= $2)); then passed; else failed "$1: NaN is not named"; fi
  killed
  goes_on "$1" 1
  named >"$work/named"
  same "$1: the names" "$work/expected.named" "$work/named"
}
named() { grep -E "tensor .* not finite|more tensors" "$work/stderr" || true; }
# put_at_6 DTYPE HEX NAMES...: puts bytes into tensors of the dtype whose names end so, at their byte 6.
put_at_6() {
  python3 - "$weights" "$@" <<'EOP'
import json, struct, sys

path, dtype, put, *ends = sys.argv[1:]
with open(path, "r+b") as file:
    size = struct.unpack("<Q", file.read(8))[0]
    for name, tensor in json.loads(file.read(size)).items():
        if name.endswith(tuple(ends)) and tensor["dtype"] == dtype:
            file.seek(8 + size + tensor["data_offsets"][0] + 6)
            file.write(bytes.fromhex(put))
EOP
}
put_at_6 BF16 c07f layernorm.weight o_proj.weight down_proj.weight
names_again "of NaN" 8

# The same of codes and of their scales.
python3 "$ATOLL_SOURCE/tests/e2e/quantise_model.py" fp8 "$ATOLL_SOURCE/tests/data/families/deepseek_v3" \
  "$work/coded" "$work/decoded"
folder="$work/coded"
weights="$folder/model.safetensors"
options=(--weights keep)
put_at_6 F8_E4M3 7f 1.mlp.experts.0.up_proj.weight
put_at_6 F32 c07f 1.mlp.experts.1.up_proj.weight_scale_inv
names_again "of NaN in codes and scales" 1
if (($(wc -l <"$work/named") >= 2)); then passed; else failed "NaN in scales is not named"; fi

# Two at once.
: >"$partial"
exec 9<"$partial"
flock 9
capture "$ATOLL" import "$folder" --output "$output"
refused "another import of the same file" 1 "another process is writing .*model.h5.partial; wait for it"
exec 9<&-
rm -f "$partial"

# One that begins as another ends: whoever is not refused makes the whole file.
folder="$ATOLL_SOURCE/tests/data/families/deepseek_v3"
capture "$ATOLL" import "$folder" --output "$work/expected.h5"
succeeds "alone" || true
for turn in {1..12}; do
  pids=()
  for delay in 0 0.00 0.01 0.02; do
    (
      sleep "$delay"
      exec "$ATOLL" import "$folder" --output "$output" >"$work/said.$delay" 2>&1
    ) &
    pids+=($!)
  done
  made=0
  for pid in "${pids[@]}"; do
    if wait "$pid"; then made=$((made + 1)); fi
  done
  wrong="$(cat "$work"/said.* | grep '^atoll:' | grep -v 'another process is writing' || true)"
  if ((made > 0)) && [[ -z "$wrong" ]]; then passed; else failed "turn $turn: $made of 4 imports at once succeeded: $wrong"; fi
  same "imports at once" "$work/expected.h5" "$output"
  if compgen -G "$partial*" >/dev/null; then failed "imports at once: files are left"; else passed; fi
done

finish
