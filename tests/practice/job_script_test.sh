#!/usr/bin/env bash
# The job script, without Slurm: one network or several give what one rank gives, whatever the file of
# requests looks like and wherever it lies; and what went wrong is shown.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export LC_ALL=C # for grep: paths are bytes
model="$work/model.h5"
import_sample "$model"

# Of Slurm's commands the script calls scontrol alone, here for four nodes that are all this machine.
mkdir "$work/bin"
cat >"$work/bin/scontrol" <<'SH'
#!/bin/sh
case "$1 $2" in
"show hostnames") printf '%s\n' localhost localhost 127.0.0.1 127.0.0.1 ;;
"show job") echo "JobId=$3" ;;
*) exit 9 ;;
esac
SH
chmod +x "$work/bin/scontrol"
job=0
# submit OPTIONS INPUT OUTPUT [OPTIONS...]: one rank on each node. Sets `job_folder`.
submit() {
  job=$((job + 1))
  job_folder="$work/job-$job"
  capture env PATH="$work/bin:$PATH" ATOLL="$ATOLL" ATOLL_OPTIONS="$1" ATOLL_TRACE=no \
    ATOLL_MPIRUN="${mpirun_flags[*]}" SLURM_JOB_ID="$job" \
    SLURM_NTASKS=4 SLURM_JOB_NODELIST="h[1-4]" ATOLL_JOB_FOLDER="$job_folder" \
    bash "$ATOLL_SOURCE/jobs/atoll.sbatch" "$model" "$2" "$3" --max-tokens 3 "${@:4}"
}
one_run() { # INPUT OUTPUT
  run_one --model "$model" --input "$1" --output "$2" --max-tokens 3
  succeeds "one run of ${1##*/}"
}

# Lines that tools take for blank or not, each in its own way; bad ones; an id twice.
line() { printf '{"id":"%s","prompt":"Ge1:1 %s"}%b' "$1" "$1" "$2"; }
{ line a '\r\n' && printf '\r\n' && line b '\r\n' && line c '\r\n' && printf '\r\n' && line d '\r\n'; } >"$work/crlf"
{ line a '\n' && printf '\v\n\f\n \t\n' && line b '\n' && line c '\n' && line d ''; } >"$work/vt"
{ printf '\xef\xbb\xbf' && line a '\n' && line b '\n' && printf 'nothing\n\x85\n' && line a '\n' && line c '\n'; } >"$work/bad"
for name in crlf vt bad; do
  one_run "$work/$name" "$work/$name.expected"
  for options in "" "--replicas 2" "--replicas 4"; do
    submit "$options" "$work/$name" "$work/$name.out"
    succeeds "$name ${options:-alone}"
    same "$name ${options:-alone}" "$work/$name.expected" "$work/$name.out"
    rm -f "$work/$name.out"
  done
done
if grep -q 'line 1 already' "$work/bad.expected"; then passed; else failed "an id that comes twice passes"; fi

# Fewer requests than networks.
line a '\n' >"$work/few"
one_run "$work/few" "$work/few.expected"
submit "--replicas 4" "$work/few" "$work/few.4"
succeeds "one request, four networks"
same "one request, four networks" "$work/few.expected" "$work/few.4"

# Folders that are hidden, names without an extension, with spaces, in Latin-1.
for name in a b c d; do line "$name" '\n'; done >"$work/requests"
one_run "$work/requests" "$work/expected"
place="$work/.site é"$'\xe9'
mkdir "$place"
cp "$work/requests" "$place/requests of today"
cp "$model" "$place/model"
plain_model="$model" model="$place/model"
ATOLL_CLUSTER_FILE="$place/links" submit "--replicas 2" "$place/requests of today" "$place/out"
succeeds "a folder of any name"
same "a folder of any name" "$work/expected" "$place/out"
check "the file of the links" test -s "$place/links"
check "the report" test -s "$job_folder/report.json"
model="$plain_model"

# Requests from a pipe.
mkfifo "$work/pipe"
cat "$work/requests" >"$work/pipe" &
submit "--replicas 2" "$work/pipe" "$work/piped"
wait
succeeds "requests from a pipe"
same "requests from a pipe" "$work/expected" "$work/piped"

# A failed job shows atoll's own message before the end of the log, of this run and no other.
submit "--replicas 2" "$work/requests" "$work/failing" --step-tokens 4 --resume-is-no-such-option
check "an option that is none" test "$code" != 0
check "its message is shown" grep -q '^atoll: .*no-such-option' "$work/stdout"
job=$((job - 1))
submit "--replicas 2" "$work/none" "$work/failing"
check "the job fails again" test "$code" = 1
check "the message is shown" test "$(grep -c "^atoll: cannot read $work/none" "$work/stdout")" -ge 1
first="$(grep -n '^atoll: ' "$work/stdout" | head -n 1)"
check "this run's first of all" grep -q 'cannot read' <<<"$first"

# A part of the requests by hand: what was written is named.
for shard in "--shard 0/2" "--shard=0/2"; do
  # shellcheck disable=SC2086  # options are words
  submit "" "$work/requests" "$work/part" $shard
  succeeds "a part, $shard"
  said="$(sed -n 's/^== done: //p' "$work/stdout")"
  check "what was written is named, $shard" test "$said" = "$work/part.shard-0-of-2" -a -s "$said"
  rm -f "$work/part"*
done
finish
