#!/usr/bin/env bash
# Folders and files with names of any bytes: Latin-1, spaces, ends of lines, signs that shells and
# formats take for their own.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

import_sample "$work/model.h5"
head -n 2 "$ATOLL_SOURCE/jobs/sample-prompts.jsonl" >"$work/requests.jsonl"
run_one --model "$work/model.h5" --input "$work/requests.jsonl" --output "$work/want.jsonl" --max-tokens 30
succeeds "plain names"

names=($'mod\xe8le' $'two words\nand lines' '100%s {}:%n' '"quoted" \back')
for name in "${names[@]}"; do
  shown="folder $(printf %q "$name")"
  folder="$work/$name"
  mkdir -- "$folder"
  cp -- "$work/model.h5" "$folder/m.h5"
  cp -- "$work/requests.jsonl" "$folder/r.jsonl"
  options=(--max-tokens 30 --progress none --model "$folder/m.h5" --input "$folder/r.jsonl"
    --output "$folder/o.jsonl" --report "$folder/report.json" --trace "$folder/trace.json"
    --cluster "$folder/cluster.json" --checkpoint-dir "$folder/checkpoints" --checkpoint-every 1)
  for ranks in 1 2; do
    atoll_on "$ranks" run "${options[@]}"
    succeeds "$shown, $ranks ranks" || continue
    same "$shown, $ranks ranks" "$work/want.jsonl" "$folder/o.jsonl"
    rm -r "$folder/checkpoints"
  done
  json_check "$shown: report, trace and links are JSON" "$folder/report.json" "$folder/trace.json" "$folder/cluster.json" <<'PY'
assert lines[0]["options"]["output"].endswith("/o.jsonl")
PY
  # A run that is stopped, or fails at its end, goes on there.
  ln -s /dev/full "$folder/full"
  capture "$ATOLL" run "${options[@]}" --report "$folder/full"
  refused "$shown: a report on a full disk" 1 "space"
  rm -rf "$folder/o.jsonl.journal" "$folder/checkpoints"
  capture mpirun "${mpirun_flags[@]}" -n 2 -x LD_PRELOAD="$fault_library" \
    -x ATOLL_FAULT="0 MPI_Iallgather 45 usr1" "$ATOLL" run "${options[@]}"
  refused "$shown: stopped" 75 "stopped by SIGUSR1"
  atoll_on 2 run "${options[@]}" --resume
  succeeds "$shown: resumed"
  check "$shown: from its checkpoint" env LC_ALL=C grep -qaz "resuming from .*checkpoint-" "$work/stderr"
  same "$shown: resumed" "$work/want.jsonl" "$folder/o.jsonl"
  checkpoints=("$folder/checkpoints"/*.h5)
  capture "$ATOLL" inspect "${checkpoints[0]}"
  succeeds "$shown: inspect"
  capture "$ATOLL" run --max-tokens 2 --model "$folder/m.h5" --input "$folder/r.jsonl" --output "$folder/x" \
    --dump-activations 0 --activations "$folder/act.h5"
  succeeds "$shown: activations"
  capture "$ATOLL" diff "$folder/act.h5" "$folder/act.h5"
  succeeds "$shown: diff"
  capture "$ATOLL" run --model "$folder/nowhere.h5" --input "$folder/r.jsonl" --output "$folder/x"
  refused "$shown: a model that is not there" 1 "nowhere"
done

# --- names relative to the folder, which begin with a sign; a home folder is the shell's business
cd "$work"
for name in -x "~"; do
  mkdir -- "$name"
  cp -- model.h5 "$name/m.h5"
  cp -- requests.jsonl "$name/r.jsonl"
done
capture "$ATOLL" run --max-tokens 30 --model=-x/m.h5 --input=-x/r.jsonl --output=-x/relative.jsonl
succeeds "names that begin with -"
same "names that begin with -" want.jsonl ./-x/relative.jsonl
capture "$ATOLL" run --max-tokens 30 --model \~/m.h5 --input \~/r.jsonl --output \~/relative.jsonl
succeeds "names that begin with ~"
same "names that begin with ~" want.jsonl \~/relative.jsonl

# --- names in a file of options, and of that file
for name in $'mod\xe8le' '100%s {}:%n' -x; do
  printf '# options\r\nmodel = "%s/m.h5"\r\ninput = "%s/r.jsonl"\noutput = "%s/o.jsonl"\nmax-tokens = 30\n' \
    "$name" "$name" "$name" >"./$name/options.toml"
  rm -f -- "$name/o.jsonl"
  capture "$ATOLL" run "--config=$name/options.toml"
  succeeds "options of $(printf %q "$name")"
  same "options of $(printf %q "$name")" want.jsonl "./$name/o.jsonl"
done
finish
