#!/usr/bin/env bash
# GPUs that a batch system or a container hides from a job stay hidden: jobs/bind.sh hands none of them
# out again, and atoll takes none. nvidia-smi here is a script that knows of three.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

mkdir -p "$work/bin" "$work/sysfs/bus/pci/devices" "$work/sysfs/class/infiniband"
cat >"$work/bin/nvidia-smi" <<'SH'
#!/bin/sh
echo '00000000:32:00.0, GPU-aaaa'
echo '00000000:36:00.0, GPU-bbbb'
echo '00000000:3a:00.0, GPU-cccc'
SH
chmod +x "$work/bin/nvidia-smi"

# sees WHAT EXPECTED LOCAL_RANK VARIABLE=VALUE...: CUDA_VISIBLE_DEVICES below bind.sh.
sees() {
  local what="$1" expected="$2" rank="$3"
  shift 3
  # shellcheck disable=SC2016  # the command's variable
  capture env -u CUDA_VISIBLE_DEVICES -u NVIDIA_VISIBLE_DEVICES -u ROCR_VISIBLE_DEVICES \
    PATH="$work/bin:/usr/bin:/bin" ATOLL_SYSFS="$work/sysfs" OMPI_COMM_WORLD_RANK="$rank" \
    OMPI_COMM_WORLD_LOCAL_RANK="$rank" "$@" \
    bash "$ATOLL_SOURCE/jobs/bind.sh" bash -c 'echo "${CUDA_VISIBLE_DEVICES-unset}"'
  if ((code == 0)) && [[ "$(cat "$work/stdout")" == "$expected" ]]; then
    passed
  else
    failed "$what: \"$(cat "$work/stdout")\", expected \"$expected\""
    show_output
  fi
}
sees "nothing hidden" 1 1
for rank in 0 1 2; do
  sees "an empty list, rank $rank" "" "$rank" CUDA_VISIBLE_DEVICES=
  for value in -1 NoDevFiles none void "-1,0,1" " "; do
    sees "CUDA_VISIBLE_DEVICES=$value, rank $rank" "$value" "$rank" CUDA_VISIBLE_DEVICES="$value"
  done
done
if grep -qF 'GPU none (CUDA_VISIBLE_DEVICES= ), NIC' "$work/stderr"; then
  passed
else
  failed "what hides the GPUs is not said: $(cat "$work/stderr")"
fi
for value in void none ""; do
  sees "a container without GPUs (\"$value\")" "" 1 NVIDIA_VISIBLE_DEVICES="$value"
done
sees "a container with all" 1 1 NVIDIA_VISIBLE_DEVICES=all
sees "CUDA's list has the last word" 2 1 NVIDIA_VISIBLE_DEVICES=void CUDA_VISIBLE_DEVICES=0,2
# CUDA takes what comes before the first that is none.
for rank in 0 1 2; do
  sees "a list that breaks off, rank $rank" 2 "$rank" CUDA_VISIBLE_DEVICES=2,-1,0
done
for rank in 0 1 2; do
  sees "a list that breaks off at no such number, rank $rank" 0 "$rank" CUDA_VISIBLE_DEVICES=0,9,1
  sees "a list that breaks off at no such name, rank $rank" GPU-bbbb "$rank" \
    CUDA_VISIBLE_DEVICES=GPU-bbbb,GPU-zzzz,GPU-aaaa
  sees "a list that begins with none, rank $rank" 9,0 "$rank" CUDA_VISIBLE_DEVICES=9,0
done
sees "a number with a zero before it" 2 1 CUDA_VISIBLE_DEVICES=0,02
sees "a list with blanks" 2 1 CUDA_VISIBLE_DEVICES="0, 2"
sees "by name" GPU-cccc 1 CUDA_VISIBLE_DEVICES=GPU-aaaa,GPU-cccc

# Without bind.sh: --backend auto computes on the CPU, --backend cuda says what hides them.
import_sample "$work/m.h5"
printf '{"id": "a", "prompt": "Ge1:1", "max_tokens": 2}\n' >"$work/r.jsonl"
for value in "" -1 NoDevFiles; do
  export CUDA_VISIBLE_DEVICES="$value"
  run_one --model "$work/m.h5" --input "$work/r.jsonl" --output "$work/o" --report "$work/report.json"
  succeeds "--backend auto with CUDA_VISIBLE_DEVICES=$value" || continue
  json_check "the CPU with CUDA_VISIBLE_DEVICES=$value" "$work/report.json" <<'PY'
assert not lines[0]["backend"].startswith("cuda"), lines[0]["backend"]
PY
  run_one --model "$work/m.h5" --input "$work/r.jsonl" --output "$work/o" --backend cuda
  refused "--backend cuda with CUDA_VISIBLE_DEVICES=$value" 1 "CUDA"
done
finish
