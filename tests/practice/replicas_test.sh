#!/usr/bin/env bash
# Replicas of the job script: what they give together is what one copy of the network gives, whatever
# the file of requests looks like, wherever it lies, and whichever of them failed before.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export LC_ALL=C # for grep: paths are bytes
model="$work/model.h5"
import_sample "$model"

# The job script without Slurm: of its commands it calls scontrol alone, here for four nodes that are
# all this machine.
mkdir "$work/bin"
cat >"$work/bin/scontrol" <<'SH'
#!/bin/sh
case "$1 $2" in
"show hostnames") printf '%s\n' localhost localhost 127.0.0.1 127.0.0.1 ;;
"show job") echo "JobId=$3" ;;
*) exit 9 ;;
esac
SH
# Atoll, but a replica whose number (of as many) is in the file `broken` fails at once.
cat >"$work/bin/atoll" <<SH
#!/usr/bin/env bash
if [[ -s "$work/broken" && "\$* " == *" --shard \$(cat "$work/broken") "* ]]; then
  echo "this replica's node is broken" >&2
  exit 9
fi
exec "$ATOLL" "\$@"
SH
chmod +x "$work/bin/scontrol" "$work/bin/atoll"
job=0
# submit REPLICAS INPUT OUTPUT [OPTIONS...]: one rank on each node. Sets `job_folder`.
submit() {
  job=$((job + 1))
  job_folder="$work/job-$job"
  capture env PATH="$work/bin:$PATH" ATOLL="$work/bin/atoll" ATOLL_REPLICAS="$1" ATOLL_TRACE=no \
    ATOLL_MPIRUN="--oversubscribe --bind-to none --mca mpi_yield_when_idle 1" SLURM_JOB_ID="$job" \
    SLURM_NTASKS=4 SLURM_JOB_NODELIST="h[1-4]" ATOLL_JOB_FOLDER="$job_folder" \
    bash "$ATOLL_SOURCE/jobs/atoll.sbatch" "$model" "$2" "$3" --max-tokens 3 "${@:4}"
}
logged() { # WHAT PATTERN
  if grep -aqE -- "$2" "$job_folder/log"; then passed; else
    failed "$1: not a word of '$2' in the log"
    tail -n 5 "$job_folder/log"
  fi
}
reports() { (cd "$job_folder" && echo report*); }
one_run() { # INPUT OUTPUT
  run_one --model "$model" --input "$1" --output "$2" --max-tokens 3
  succeeds "one run of ${1##*/}"
}

# Lines that tools take for blank or not, each in its own way; bad ones; an id in two replicas.
line() { printf '{"id":"%s","prompt":"Ge1:1 %s"}%b' "$1" "$1" "$2"; }
{ line a '\r\n' && printf '\r\n' && line b '\r\n' && line c '\r\n' && printf '\r\n' && line d '\r\n'; } >"$work/crlf"
{ line a '\n' && printf '\v\n\f\n \t\n' && line b '\n' && line c '\n' && line d ''; } >"$work/vt"
{ printf '\xef\xbb\xbf' && line a '\n' && line b '\n' && printf 'nothing\n\x85\n' && line a '\n' && line c '\n'; } >"$work/bad"
for name in crlf vt bad; do
  one_run "$work/$name" "$work/$name.expected"
  for replicas in 2 4; do
    submit "$replicas" "$work/$name" "$work/$name.$replicas"
    succeeds "$replicas replicas, $name"
    same "$replicas replicas, $name" "$work/$name.expected" "$work/$name.$replicas"
    check "no parts are left" test "$(find "$work" -name "$name.$replicas?*" | wc -l)" = 0
  done
done
if grep -q 'line 1 already' "$work/bad.4"; then passed; else failed "an id in two replicas passes"; fi

# Fewer requests than replicas.
line a '\n' >"$work/few"
one_run "$work/few" "$work/few.expected"
submit 4 "$work/few" "$work/few.4"
succeeds "one request, four replicas"
same "one request, four replicas" "$work/few.expected" "$work/few.4"
check "one of them had something to do" test "$(reports)" = report.0.json

# One replica fails, and the job is submitted again by hand.
for name in a b c d; do line "$name" '\n'; done >"$work/requests"
one_run "$work/requests" "$work/expected"
echo 1/2 >"$work/broken"
submit 2 "$work/requests" "$work/out"
check "the job fails" test "$code" = 9
check "the other replica's part is whole" test -s "$work/out.shard-0-of-2" -a ! -e "$work/out"
stamp="$(stat -c '%i %y' "$work/out.shard-0-of-2")"
rm "$work/broken"
submit 2 "$work/requests" "$work/out" --max-tokens 2
check "with another option it is refused" test "$code" = 1
logged "with another option it is refused" 'shard-0-of-2 is of another run: max-tokens was 3 and is 2'
check "what is finished is kept" test "$(stat -c '%i %y' "$work/out.shard-0-of-2")" = "$stamp"
rm "$work/out.shard-1-of-2" # what that other replica has finished meanwhile
submit 2 "$work/requests" "$work/out"
succeeds "submitted again"
same "submitted again" "$work/expected" "$work/out"
logged "the finished replica" 'nothing to do: shard 0/2 is finished'
check "the finished replica computes nothing" test "$(reports)" = report.1.json
submit 2 "$work/requests" "$work/out"
succeeds "and once more"
same "and once more" "$work/expected" "$work/out"
check "no replica computes anything" test "$(reports)" = 'report*'

# Folders that are hidden, names without an extension, with spaces, in Latin-1; the file of the links
# is measured once for each replica.
place="$work/.site é"$'\xe9'
mkdir "$place"
cp "$work/requests" "$place/requests of today"
cp "$model" "$place/model"
plain_model="$model" model="$place/model"
for replicas in 1 2; do
  ATOLL_CLUSTER_FILE="$place/links" submit "$replicas" "$place/requests of today" "$place/out.$replicas"
  succeeds "$replicas replicas in a folder of any name"
  same "$replicas replicas in a folder of any name" "$work/expected" "$place/out.$replicas"
done
check "files of the links" test "$(cd "$place" && echo links*)" = "links links.0 links.1"
model="$plain_model"

# Requests from a pipe can be read once; every replica reads them all.
mkfifo "$work/pipe"
cat "$work/requests" >"$work/pipe" &
submit 2 "$work/pipe" "$work/piped"
wait
succeeds "requests from a pipe"
same "requests from a pipe" "$work/expected" "$work/piped"

# A failed job shows atoll's own message before the end of the log, of this run and no other.
submit 2 "$work/requests" "$work/failing" --step-tokens 4 --resume-is-no-such-option
check "an option that is none" test "$code" != 0
check "its message is shown" grep -q '^atoll: .*no-such-option' "$work/stdout"
job=$((job - 1))
submit 2 "$work/none" "$work/failing"
check "the job fails again" test "$code" = 1
check "the message is shown" test "$(grep -c "^atoll: cannot read $work/none" "$work/stdout")" -ge 2
first="$(grep -n '^atoll: ' "$work/stdout" | head -n 1)"
check "this run's first of all" grep -q 'cannot read' <<<"$first"

# A part of the requests by hand: what was written is named.
for shard in "--shard 0/2" "--shard=0/2"; do
  # shellcheck disable=SC2086  # options are words
  submit 1 "$work/requests" "$work/part" $shard
  succeeds "one replica, $shard"
  said="$(sed -n 's/^== done: //p' "$work/stdout")"
  check "what was written is named, $shard" test "$said" = "$work/part.shard-0-of-2" -a -s "$said"
  rm -f "$work/part"*
done

submit 2 "$work/requests" "$work/wrong" --shard 0/2
if ((code == 1)) && grep -q 'ATOLL_REPLICAS=2' "$work/stderr"; then passed; else failed "--shard and replicas"; fi
finish
