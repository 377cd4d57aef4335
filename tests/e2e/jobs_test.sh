#!/usr/bin/env bash
# The job scripts without a cluster: every option that they pass exists, what they refuse they refuse
# with a reason, and ranks are bound to the GPUs and network cards that sysfs shows.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
jobs="$ATOLL_SOURCE/jobs"

# Options. Those of other programs that the scripts call are few, and listed.
others=" --array --sequences --prompt-tokens --vocab --format --short --untracked-files "
help="$(for command in "" run init check join; do "$ATOLL" ${command:+"$command"} --help; done)"
used="$(sed 's/^ *#.*//' "$jobs"/*.sbatch "$jobs/env.sh" "$jobs/workload.sh" |
  grep -oE -- '(^|[ ("])--[a-z][a-z-]+' | tr -d ' ("' | sort -u)"
for option in $used; do
  if [[ "$others" == *" $option "* ]] || grep -qE -- "(^|[ ,])$option( |,|$)" <<<"$help"; then
    passed
  else
    failed "job scripts use $option, which atoll does not have"
  fi
done
for option in --model --input --output --report --trace --cluster --checkpoint-dir --resume --replicas \
  --tp --layout; do
  if grep -qx -- "$option" <<<"$used"; then passed; else failed "no job script uses $option"; fi
done

# Requests of random tokens: as asked, and the same again.
make_requests() {
  python3 "$jobs/make-requests.py" --sequences 5 --prompt-tokens 7 --max-tokens 3 --vocab 256
}
make_requests >"$work/requests.jsonl"
make_requests >"$work/again.jsonl"
same "requests of random tokens" "$work/requests.jsonl" "$work/again.jsonl"
json_check "requests" "$work/requests.jsonl" <<'PY'
requests = lines[0]
assert [r["id"] for r in requests] == list("01234")
assert all(len(r["tokens"]) == 7 and r["max_tokens"] == 3 for r in requests)
assert all(0 <= t < 256 for r in requests for t in r["tokens"])
PY

# What is missing is named.
says() { # WHAT PATTERN: the last command failed with this on stderr
  if ((code != 0)) && grep -qE -- "$2" "$work/stderr"; then
    passed
  else
    failed "$1: exit code $code"
    show_output
  fi
}
capture env ATOLL="$ATOLL" SLURM_JOB_ID=1 bash "$jobs/atoll.sbatch"
says "a job without a model" 'ATOLL_MODEL is not set'
capture env ATOLL="$ATOLL" SLURM_JOB_ID=1 bash "$jobs/atoll.sbatch" model.h5
says "a job with one file" 'MODEL INPUT OUTPUT'
capture env ATOLL="$work/nothing" bash "$jobs/atoll.sbatch"
says "no executable" "no executable .*nothing"
capture env ATOLL="$ATOLL" ATOLL_SPACK=here bash "$jobs/atoll.sbatch"
says "no Spack" 'no spack command'

# What the reference deployments start, on their nodes and ranks: a stand-in for atoll notes it, and one
# for mpirun starts it once.
mkdir "$work/stand-ins"
cat >"$work/stand-ins/scontrol" <<'SH'
#!/bin/sh
echo "JobId=1"
SH
cat >"$work/stand-ins/mpirun" <<'SH'
#!/bin/sh
echo "mpirun $*"
[ "$1" != --version ] || exit 0
while [ "$1" != bash ] && [ "${1##*/}" != atoll ]; do shift; done
exec "$@"
SH
cat >"$work/stand-ins/atoll" <<'SH'
#!/bin/sh
echo "atoll $*"
SH
chmod +x "$work/stand-ins"/*
touch "$work/model.h5" "$work/requests.jsonl"
# starts SCRIPT NODES RANKS_PER_NODE PATTERN [OPTION...]: what the script asks Slurm for, and what its job
# starts; the arguments are those of a user.
starts() {
  local script="$1" folder="$work/started"
  rm -rf "$folder"
  if grep -qx -- "#SBATCH --nodes=$2" "$jobs/$script" &&
    grep -qx -- "#SBATCH --ntasks-per-node=$3" "$jobs/$script"; then passed; else failed "$script: nodes"; fi
  capture env PATH="$work/stand-ins:$PATH" ATOLL="$work/stand-ins/atoll" SLURM_JOB_ID=1 \
    SLURM_NTASKS="$(($2 * $3))" SLURM_JOB_NODELIST=h ATOLL_JOB_FOLDER="$folder" \
    bash "$jobs/$script" "$work/model.h5" "$work/requests.jsonl" "$work/out.jsonl" "${@:5}"
  succeeds "$script" || return 0
  if (($(grep -c '^mpirun ' "$folder/log") == 1)) && grep -q "^mpirun .*-n $(($2 * $3)) " "$folder/log" &&
    grep -qE -- "^atoll run .*$4" "$folder/log"; then
    passed
  else
    failed "$script starts: $(grep -E '^(mpirun|atoll) ' "$folder/log")"
  fi
}
starts moe-16l-16gpu.sbatch 2 8 '--resume .*--trace [^ ]*$'
starts moe-16l-16gpu-baseline.sbatch 2 8 ' --layout tp8-pp2$'
starts moe-61l-128gpu.sbatch 16 8 ' --tp 8 --replicas 2$'
starts moe-61l-128gpu.sbatch 16 8 ' --tp 8 --replicas 2 --max-tokens 5$' --max-tokens 5

# Binding. A node of eight GPUs and eight cards, two of each below one PCI switch, two sockets.
sysfs="$work/sysfs"
mkdir -p "$sysfs/bus/pci/devices" "$sysfs/class/infiniband"
core="$(sed -nE 's/^Cpus_allowed_list:\s*([0-9]+).*/\1/p' /proc/self/status)" # one that may be used
add_device() { # PATH below devices, CLASS
  local folder="$sysfs/devices/$1"
  mkdir -p "$folder"
  echo 0x10de >"$folder/vendor"
  echo "$2" >"$folder/class"
  echo "$core" >"$folder/local_cpulist"
  ln -s "$folder" "$sysfs/bus/pci/devices/${1##*/}"
}
add_nic() { # NAME PATH STATE
  mkdir -p "$sysfs/devices/$2" "$sysfs/class/infiniband/$1/ports/1"
  echo "$3" >"$sysfs/class/infiniband/$1/ports/1/state"
  ln -s "$sysfs/devices/$2" "$sysfs/class/infiniband/$1/device"
}
for i in {0..7}; do
  switch="pci000$((i / 4)):00/000$((i / 4)):00:0$((i / 2)).0/000$((i / 4)):1$((i / 2)):00.0"
  add_device "$switch/000$((i / 4)):2$((i / 2)):0$i.0/000$((i / 4)):3$i:00.0" 0x030200
  add_device "$switch/000$((i / 4)):2$((i / 2)):0$i.0/000$((i / 4)):3$i:00.1" 0x040300
  add_nic "mlx5_$i" "$switch/000$((i / 4)):2$((i / 2)):1$i.0/000$((i / 4)):4$i:00.0" "4: ACTIVE"
done
add_nic mlx5_9 "pci0000:00/0000:00:09.0" "1: DOWN"

# `nproc` says how many cores a command may use, unless OMP_NUM_THREADS says otherwise.
bound() { # LOCAL_RANK [VARIABLE=VALUE...]: what rank and command see
  local rank="$1"
  shift
  # shellcheck disable=SC2016  # the command's variables
  capture env -u OMP_NUM_THREADS -u CUDA_VISIBLE_DEVICES -u UCX_NET_DEVICES PATH="$work/bin:/usr/bin:/bin" \
    ATOLL_SYSFS="$sysfs" OMPI_COMM_WORLD_RANK="1$rank" OMPI_COMM_WORLD_LOCAL_RANK="$rank" "$@" \
    bash "$jobs/bind.sh" bash -c \
    'echo "${CUDA_VISIBLE_DEVICES-none} ${CUDA_DEVICE_ORDER-none} ${UCX_NET_DEVICES-none} $(nproc)"'
}
sees() { # WHAT EXPECTED
  if ((code == 0)) && [[ "$(cat "$work/stdout")" == "$2" ]]; then
    passed
  else
    failed "$1: sees \"$(cat "$work/stdout")\", expected \"$2\""
    show_output
  fi
}
mkdir "$work/bin" # nvidia-smi would go here
printf '#!/bin/sh\nexit 9\n' >"$work/bin/nvidia-smi" && chmod +x "$work/bin/nvidia-smi"
for i in {0..7}; do
  bound "$i"
  sees "rank $i of eight" "$i PCI_BUS_ID mlx5_$i:1 1"
done
if grep -qE '^bind: rank 17 on .*: GPU 7 \(0001:37:00.0\), NIC mlx5_7:1 \(distance 4\), cores '"$core"'$' \
  "$work/stderr"; then passed; else failed "what bind.sh prints: $(cat "$work/stderr")"; fi
bound 1 CUDA_VISIBLE_DEVICES=4,6
sees "the second of two GPUs that Slurm gave" "6 PCI_BUS_ID mlx5_6:1 1"
bound 3 UCX_NET_DEVICES=mlx5_0:1
sees "a card that was given" "3 PCI_BUS_ID mlx5_0:1 1"
echo "1: DOWN" >"$sysfs/class/infiniband/mlx5_5/ports/1/state"
bound 5
sees "its own card is down" "5 PCI_BUS_ID mlx5_4:1 1"

# A driver that does not answer: the error is not taken for a GPU.
cat >"$work/bin/nvidia-smi" <<'SH'
#!/bin/sh
echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
exit 9
SH
bound 2
sees "a dead driver" "2 PCI_BUS_ID mlx5_2:1 1"

# Slurm hides GPUs that sysfs shows: nvidia-smi has the last word, also for names.
cat >"$work/bin/nvidia-smi" <<'SH'
#!/bin/sh
echo '00000001:36:00.0, GPU-bbbb'
echo '00000000:32:00.0, GPU-aaaa'
SH
bound 1
sees "two GPUs of eight" "1 PCI_BUS_ID mlx5_6:1 1"
bound 0 CUDA_VISIBLE_DEVICES=GPU-bbbb,GPU-aaaa
sees "a GPU by its name" "GPU-bbbb PCI_BUS_ID mlx5_6:1 1"
rm "$work/bin/nvidia-smi"

rm -rf "$sysfs"/class/infiniband/*
bound 2
sees "GPUs without cards" "2 PCI_BUS_ID none 1"
rm "$sysfs"/bus/pci/devices/*
bound 2
sees "no GPUs" "none none none $(env -u OMP_NUM_THREADS nproc)"
finish
