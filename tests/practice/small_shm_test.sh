#!/usr/bin/env bash
# A container's small /dev/shm, and one that cannot be written: ranks find other ways to talk.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# shellcheck disable=SC2016  # the inner shell's arguments
inside=(unshare --mount --map-root-user bash -c 'mount -t tmpfs -o "$1" tmpfs /dev/shm && shift && exec "$@"' bash)
"${inside[@]}" size=64k true 2>/dev/null || {
  echo "skipped: no file system can be mounted here (neither root nor user namespaces)"
  exit 77
}
import_sample "$work/m.h5"
head -n 3 "$ATOLL_SOURCE/jobs/sample-prompts.jsonl" >"$work/r.jsonl"
options=(--model "$work/m.h5" --input "$work/r.jsonl" --max-tokens 8)
run_one "${options[@]}" --output "$work/expected"
succeeds "one rank"
for how in size=64k ro; do
  capture "${inside[@]}" "$how" mpirun "${mpirun_flags[@]}" -n 3 "$ATOLL" run --progress none \
    "${options[@]}" --output "$work/o.$how"
  succeeds "/dev/shm with $how" && same "/dev/shm with $how" "$work/expected" "$work/o.$how"
done
finish
