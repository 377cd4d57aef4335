#!/usr/bin/env bash
# Other weights for a run that goes on: all networks take them up together, every result is that of its
# version alone, what is no version of the model is refused by name, and an interrupted run goes on.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

control="$work/control"
results="$work/results.jsonl"
points="$work/points"
journal="$results.journal"
updates=$((all_sweeps ? 20 : 3))

for version in 1 2 3; do
  capture "$ATOLL" init --preset moe-4l-tiny --seed "$version" --output "$work/v$version.h5"
  succeeds "version $version"
done
capture "$ATOLL" init --preset moe-16l-tiny --output "$work/other.h5"
succeeds "another model"
python3 - "$work" <<'EOP'
import json, random, sys

work = sys.argv[1]
random.seed(5)
def write(name, count):
    with open(f"{work}/{name}.jsonl", "w") as file:
        for i in range(count):
            tokens = [random.randrange(256) for _ in range(random.randint(1, 20))]
            line = {"id": str(i), "tokens": tokens, "max_tokens": random.randint(4, 12)}
            if i % 3 == 0:
                line.update(temperature=0.9, seed=i)
            if i % 7 == 3:  # all of one version
                line.update(n=3)
            file.write(json.dumps(line) + "\n")
write("requests", 500)
write("many", 3000)
# One byte of a weight, in the middle of the file.
data = bytearray(open(f"{work}/v2.h5", "rb").read())
data[len(data) // 2] ^= 1
open(f"{work}/broken.h5", "wb").write(data)
EOP

# Each version alone, on one rank. `weights` are their names.
weights=()
alone() { # REQUESTS
  local version
  for version in 1 2 3; do
    capture "$ATOLL" run --model "$work/v$version.h5" --input "$work/$1.jsonl" \
      --output "$work/$1.expected-$version.jsonl" --control "$work/none" --progress none
    succeeds "$1 with version $version alone"
    weights[version]="$(sed -n '1s/.*"weights":"\([0-9a-f]\{16\}\)"}$/\1/p' \
      "$work/$1.expected-$version.jsonl")"
  done
}
alone requests
if [[ "${#weights[1]}" == 16 && "${weights[1]}" != "${weights[2]}" && "${weights[2]}" != "${weights[3]}" ]]; then
  passed
else
  failed "results do not name their weights: ${weights[*]}"
fi
capture "$ATOLL" run --model "$work/v1.h5" --input "$work/requests.jsonl" --output "$work/plain.jsonl"
succeeds "without --control"
if grep -q weights "$work/plain.jsonl"; then failed "results name weights without --control"; else passed; fi
sed 's/,"weights":"[^"]*"}$/}/' "$work/requests.expected-1.jsonl" >"$work/unnamed.jsonl"
same "results but for their weights" "$work/plain.jsonl" "$work/unnamed.jsonl"

# start REQUESTS VERSION RANKS OPTIONS...: a run in which every pass takes 4 ms at least, so that there is
# time for what is done to it.
job=0
start() {
  mpirun "${mpirun_flags[@]}" -n "$3" -x LD_PRELOAD="$fault_library" \
    -x ATOLL_FAULT="0 MPI_Iallgather 4 slow" "$ATOLL" run --model "$work/v$2.h5" \
    --input "$work/$1.jsonl" --output "$results" --control "$control" --max-sequences 1 \
    --progress none "${@:4}" >"$work/stdout" 2>"$work/stderr" </dev/null &
  job=$!
}
ends() { # WHAT [CODE]: sets `code`
  code=0
  wait "$job" || code=$?
  if ((code == ${2:-0})); then passed; else
    failed "$1: exit code $code"
    show_output
  fi
}
# await WHAT COMMAND...: until COMMAND is true of the run, which goes on.
await() {
  local limit=$((SECONDS + command_limit))
  until "${@:2}"; do
    if ! kill -0 "$job" 2>/dev/null || ((SECONDS > limit)); then
      failed "$1: the run has ended before, or goes on for ever"
      show_output
      finish
    fi
    sleep 0.01
  done
}
num_finished() { # 0 where there is no journal yet
  local count
  count="$(grep -cs '"result"' "$journal" || true)"
  echo "${count:-0}"
}
finished_beyond() { (($(num_finished) > $1)); }
# tell PATH WORD: an update after some more results, and waits until its file ends in that word.
tell() {
  rm -f "$control"/update.json.*
  await "some results" finished_beyond "$(($(num_finished) + 5))"
  printf '{"model": "%s"}' "$1" >"$control/new"
  mv "$control/new" "$control/update.json"
  await "an update to $1" test -e "$control/update.json.$2"
}
takes_up() { tell "$1" "done"; }
refuses() { tell "$1" "refused"; }
told() { # WHAT PATTERN: the reason of the refusal, in its file and on stderr
  if grep -qE -- "$2" "$control/update.json.refused.txt" && grep -qE -- "is refused: .*$2" "$work/stderr"; then
    passed
  else
    failed "$1: $(cat "$control/update.json.refused.txt")"
  fi
}
# each_its_own WHAT REQUESTS LEAST: every result is the line of its version alone, and so many versions
# have some.
each_its_own() {
  json_check "$1" "$results" "$work/$2.expected-1.jsonl" "$work/$2.expected-2.jsonl" \
    "$work/$2.expected-3.jsonl" <<PY
results, *expected = lines
by_weights = {version[0]["weights"]: version for version in expected}
seen = set()
assert len(results) == len(expected[0])
for number, result in enumerate(results):
    assert result == by_weights[result["weights"]][number], (number, result)
    seen.add(result["weights"])
assert len(seen) >= $3, seen
PY
}

# Two networks of two ranks.
start requests 1 4 --replicas 2 --report "$work/report.json"
takes_up "$work/v2.h5"
refuses "$work/broken.h5"
told "a broken file" 'broken.h5.*checksum'
refuses "$work/other.h5"
told "another model" 'other.h5: it is no other version.*num_hidden_layers was 4 and is 16'
refuses "$work/none.h5"
told "a file that is not there" 'none.h5'
rm -f "$control"/update.json.*
echo 'not JSON' >"$control/update.json"
await "an update that is none" test -e "$control/update.json.refused"
told "an update that is none" '"model": PATH'
takes_up "$work/v3.h5"
ends "the run with updates"
each_its_own "results of three versions" requests 3
json_check "the report" "$work/report.json" <<PY
updates = lines[0]["updates"]
assert updates["weights"] == ["${weights[1]}", "${weights[2]}", "${weights[3]}"], updates
assert updates["refused"] == 3 and updates["seconds"] > 0, updates
PY

# Attention shared, stages: the same.
start requests 3 8 --replicas 2 --tp 2 --pp 2
takes_up "$work/v1.h5"
takes_up "$work/v2.h5"
ends "the run of two networks with two stages"
each_its_own "results with stages" requests 3

# Experts that change their ranks meanwhile: new weights go to where they are by then.
start requests 1 4 --slots 6 --report "$work/report.json" --balance replicate --balance-above 1 --balance-every 1 \
  --balance-pays-in 1000000000000
takes_up "$work/v2.h5"
takes_up "$work/v3.h5"
ends "the run whose experts move"
each_its_own "results while experts move" requests 3
json_check "experts have moved" "$work/report.json" <<PY
assert lines[0]["balance"]["moved"]["experts_moved"] > 0, lines[0]["balance"]["moved"]
PY

# With --update in-flight some results are of two versions, and say so.
start requests 1 4 --replicas 2 --update in-flight
takes_up "$work/v2.h5"
ends "the run with an update in flight"
json_check "results of an update in flight" "$results" "$work/requests.expected-1.jsonl" \
  "$work/requests.expected-2.jsonl" <<PY
results, *expected = lines
by_weights = {version[0]["weights"]: version for version in expected}
both = 0
for number, result in enumerate(results):
    names = result["weights"]
    if isinstance(names, list):  # of samples with different ones
        assert len(set(names)) > 1 and len(names) == len(result["samples"]), result
        both += 1
    elif names == "${weights[1]},${weights[2]}":
        both += 1
    else:
        assert result == by_weights[names][number], (number, result)
assert 0 < both <= 5, both
PY

# What is interrupted goes on with the version that its requests began with, or begins them anew.
start requests 1 4 --replicas 2 --checkpoint-dir "$points" --checkpoint-every 20
takes_up "$work/v2.h5"
await "results of the new version" finished_beyond "$(($(num_finished) + 5))"
rm "$control"/update.json.*
kill -USR1 "$job"
ends "the run that is stopped" 75
cp -r "$points" "$work/points.kept"
cp "$journal" "$work/journal.kept"
for version in 2 3; do
  rm -rf "$points" "$results"
  cp -r "$work/points.kept" "$points"
  cp "$work/journal.kept" "$journal"
  atoll_on 3 run --model "$work/v$version.h5" --input "$work/requests.jsonl" --output "$results" \
    --control "$control" --checkpoint-dir "$points" --resume --progress none
  succeeds "it goes on with version $version"
  each_its_own "it goes on with version $version" requests "$version"
  if ((version == 2)); then
    pattern='resuming from .*, [1-4] requests under way'
  else
    pattern="began with weights ${weights[2]}, and ${weights[3]} are loaded: they start anew"
  fi
  if grep -qE -- "$pattern" "$work/stderr"; then passed; else
    failed "version $version: no word of '$pattern'"
    show_output
  fi
done
cp "$work/journal.kept" "$journal"
atoll_on 2 run --model "$work/v2.h5" --input "$work/requests.jsonl" --output "$results" --resume
refused "its journal without --control" 1 'model was as each result says'
rm -f "$journal"

# Many updates of two networks of eight ranks.
if ((all_sweeps)); then
  alone many
  start many 1 16 --replicas 2
  for ((update = 1; update <= updates; ++update)); do
    takes_up "$work/v$((1 + update % 3)).h5"
  done
  ends "$updates updates on 16 ranks"
  each_its_own "$updates updates on 16 ranks" many 3
fi
finish
