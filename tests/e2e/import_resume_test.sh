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

capture "$ATOLL" import "$folder" --output "$work/expected.h5"
succeeds "import in one go"

# killed: leaves what an import on two ranks has written when it dies as it ends; sets `lines`.
killed() {
  local calls
  for calls in {4..20}; do
    rm -f "$output" "$partial"*
    capture mpirun "${mpirun_flags[@]}" -n 2 -x LD_PRELOAD="$fault_library" \
      -x ATOLL_FAULT="1 MPI_Allreduce $calls kill" "$ATOLL" import "$folder" --output "$output"
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
  if (($2 == 1)); then capture "$ATOLL" import "$folder" --output "$output"; else
    atoll_on "$2" import "$folder" --output "$output"
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
python3 - "$weights" <<'EOP'
import json, struct, sys

with open(sys.argv[1], "r+b") as file:
    size = struct.unpack("<Q", file.read(8))[0]
    header = json.loads(file.read(size))
    for name, tensor in header.items():
        if name.endswith(("layernorm.weight", "o_proj.weight", "down_proj.weight")):
            file.seek(8 + size + tensor["data_offsets"][0] + 6)
            file.write(b"\xc0\x7f")
EOP
touch -r "$work/weights" "$weights"
named() { grep -E "tensor .* not finite|more tensors" "$work/stderr" || true; }
capture "$ATOLL" import "$folder" --output "$work/expected.h5"
succeeds "import of NaN in one go"
named >"$work/expected.named"
if (($(grep -c "1 NaN" "$work/expected.named") >= 8)); then passed; else failed "NaN is not named"; fi
killed
goes_on "of NaN" 1
named >"$work/named"
same "the names of what has NaN" "$work/expected.named" "$work/named"

# Two at once.
: >"$partial"
exec 9<"$partial"
flock 9
capture "$ATOLL" import "$folder" --output "$output"
refused "another import of the same file" 1 "another process is writing .*model.h5.partial; wait for it"
exec 9<&-

finish
