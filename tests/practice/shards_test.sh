#!/usr/bin/env bash
# Runs that know nothing of each other share one file of requests (the tasks of a job array): joined, their
# results are those of one run, whatever lines the file has, and what is finished is not computed again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export LC_ALL=C # for grep: paths are bytes
model="$work/model.h5"
import_sample "$model"

# A file as people have them: CRLF, blank lines of all kinds, bad lines, an id twice.
folder="$work/.r é"$'\xe9'" x" # hidden, with a space, not UTF-8, and no file in it has an extension
mkdir "$folder"
input="$folder/requests"
python3 - "$input" <<'EOP'
import json, sys

def line(name, **more):
    return json.dumps({"id": name, "prompt": "Ge1:1 In the " + name, **more}).encode()
lines = [line("a", temperature=0.8, seed=7), b"", line("b"), b"\v", b"not JSON", line("c", temperature=1.5),
         b" \t\f", line("a"), line("d", temperature=0.9, top_p=0.7, seed=1), b'{"prompt": "no id"}', line("e"),
         line("f", max_tokens=3, temperature=2)]
with open(sys.argv[1].encode("utf-8", "surrogateescape"), "wb") as file:
    file.write(b"\r\n".join(lines))
EOP
requests=9

# shard K/N OUTPUT [OPTIONS...]
shard() {
  run_one --model "$model" --input "$input" --shard "$1" --output "$2" --max-tokens 6 "${@:3}"
}
join() { capture "$ATOLL" join --output "$1" "${@:2}"; }
says() { # WHAT PATTERN: on stdout or stderr of the last command
  if grep -aqE -- "$2" "$work/stdout" "$work/stderr"; then passed; else
    failed "$1: not a word of '$2'"
    show_output
  fi
}
left_of() { find "$folder" -name "${1##*/}?*" | sort; }

for mode in generate score; do
  run_one --model "$model" --input "$input" --output "$folder/expected-$mode" --max-tokens 6 --mode "$mode"
  succeeds "one run, $mode"
done
for trial in generate/1 generate/2 generate/11 score/3; do # 11: more than there are requests
  mode="${trial%/*}" shards="${trial#*/}" output="$folder/joined-${trial/\//-}"
  for ((k = shards - 1; k >= 0; --k)); do
    shard "$k/$shards" "$output" --mode "$mode"
    succeeds "shard $k/$shards, $mode"
    if ((k >= requests)); then says "a shard without requests" "shard $k/$shards has no request"; fi
  done
  check "no results before they are joined" test ! -e "$output"
  join "$output"
  succeeds "join of $trial"
  same "$trial shards" "$folder/expected-$mode" "$output"
  check "nothing is left beside the results" test -z "$(left_of "$output")"
  cp "$output" "$work/kept"
  join "$output"
  succeeds "join again"
  same "join again" "$work/kept" "$output"
done

# Not with other ranks or another order either.
output="$folder/ranks"
atoll_on 2 run --model "$model" --input "$input" --shard 0/2 --output "$output" --max-tokens 6
succeeds "two ranks"
atoll_on 3 run --model "$model" --input "$input" --shard 1/2 --output "$output" --max-tokens 6 --chunks 1
succeeds "three ranks"
join "$output"
same "shards on 2 and 3 ranks" "$folder/expected-generate" "$output"
cp "$input" "$work/requests"
atoll_on 2 run --model "$model" --input "$work/requests" --shard 8/9 --output "$work/few" \
  --checkpoint-dir "$work/points" --report "$work/few.report"
succeeds "two ranks for one request"
atoll_on 2 run --model "$model" --input "$input" --shard 9/12 --output "$folder/none" --resume \
  --checkpoint-dir "$work/points" --report "$folder/none.report" --cluster "$folder/none.cluster"
succeeds "two ranks for no request"
check "they leave a part" test -s "$folder/none.shard-9-of-12"
check "and no report" test ! -e "$folder/none.report" -a ! -e "$folder/none.cluster"

# A finished shard is kept by --resume alone.
output="$folder/again"
shard 0/2 "$output"
stamp() { stat -c '%i %y' "$output.shard-0-of-2"; }
before="$(stamp)"
shard 0/2 "$output" --resume --report "$folder/again.report"
succeeds "a finished shard"
says "a finished shard" 'nothing to do: shard 0/2 is finished'
check "it is not computed again" test "$(stamp)" = "$before" -a ! -e "$folder/again.report"
check "it leaves no journal" test ! -e "$output.shard-0-of-2.journal"
for other in "--max-tokens 5" "--dtype float32" "--mode score" "--kv-tokens 640"; do
  # shellcheck disable=SC2086  # two words
  shard 0/2 "$output" --resume $other
  refused "a finished shard, but $other" 1 "${other:2:4}.*was .* and is .*remove the file"
done
sed 's/In the b/On the b/' "$input" >"$work/other"
run_one --model "$model" --input "$work/other" --shard 0/2 --output "$output" --max-tokens 6 --resume
refused "a finished shard, but other requests of another shard" 1 'input was'
check "it is still there" test "$(stamp)" = "$before"

# What may not be joined.
join "$output"
refused "a shard is missing" 1 'shard-1-of-2.*compute its shard.*--shard 1/2'
shard 1/2 "$output" --max-tokens 5
join "$output"
refused "another run's shard" 1 'max-tokens was 6 and is 5'
check "parts are kept" test -e "$output.shard-0-of-2" -a -e "$output.shard-1-of-2"
shard 1/2 "$output"
python3 - "$output.shard-1-of-2" <<'EOP'
import sys

path = sys.argv[1].encode("utf-8", "surrogateescape")
data = open(path, "rb").read()
open(path, "wb").write(data[:-20])
EOP
join "$output"
refused "a torn part" 1 'shard-1-of-2 is damaged.*compute this shard again'
check "no results of it" test ! -e "$output" -a ! -e "$output.partial"
shard 1/2 "$output" --resume
succeeds "a torn part is computed again"
says "a torn part is computed again" 'shard-1-of-2 is damaged; its shard is computed again'
join "$output"
same "after all that" "$folder/expected-generate" "$output"
shard 1/2 "$output" --resume --report "$folder/again.report"
succeeds "a shard that was joined"
says "a shard that was joined" 'nothing to do: .*results of all shards'
check "it is not computed again" test ! -e "$output.shard-1-of-2" -a ! -e "$folder/again.report"
rm "$output"
shard 1/2 "$output" --resume
check "where the results are gone it is" test -e "$output.shard-1-of-2"

# A shard that was interrupted goes on. Its two ranks call MPI_Iallgather in every pass, and less than 30
# times before; of its four requests each rank answers one after the other, in 40 passes.
output="$folder/stopped"
run_one --model "$model" --input "$input" --output "$folder/expected-40" --max-tokens 40
succeeds "one run of 40 tokens"
capture mpirun "${mpirun_flags[@]}" -n 2 -x LD_PRELOAD="$fault_library" \
  -x ATOLL_FAULT="0 MPI_Iallgather 80 usr1" "$ATOLL" run --progress none --model "$model" \
  --input "$input" --shard 1/2 --output "$output" --max-tokens 40 --max-sequences 1
check "stopped by a signal" test "$code" = 75
check "with results" test -s "$output.shard-1-of-2.journal"
join "$output"
refused "no shard is finished" 1 'nothing to join'
shard 0/2 "$output" --max-tokens 40
succeeds "the other shard"
join "$output"
refused "one shard is not finished" 1 'shard-1-of-2 \(its run has not finished.*--shard 1/2'
shard 1/2 "$output" --max-tokens 40 --resume
says "it goes on" 'resuming: [1-3] of 4 requests'
join "$output"
same "a shard that was interrupted" "$folder/expected-40" "$output"

# Wrong use.
for wrong in 2/2 0/0 1 x/y; do
  shard "$wrong" "$output"
  refused "--shard $wrong" 2 "--shard $wrong: "
done
shard 0/2 /dev/null
refused "a part beside a device" 1 'cannot write parts beside /dev/null'
shard 0/2 "$folder"
refused "a part beside a folder" 1 'cannot write parts beside'
shard 0/2 "$folder/x" --report "$folder/x.shard-0-of-2"
refused "a report over the part" 2 'same file'
join "$folder/nothing"
refused "nothing to join" 1 'nothing to join'
finish
