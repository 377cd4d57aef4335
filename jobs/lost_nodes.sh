# shellcheck shell=bash
# Which nodes a run has lost, and with which it goes on. Sourced by atoll.sbatch.
set -euo pipefail

# ranks_by_node LIST: Slurm's list of how many tasks each node has, such as "8(x3),4", a number a line.
ranks_by_node() {
  local part count
  for part in ${1//,/ }; do
    if [[ "$part" =~ ^([0-9]+)\(x([0-9]+)\)$ ]]; then
      for ((count = 0; count < BASH_REMATCH[2]; ++count)); do echo "${BASH_REMATCH[1]}"; done
    else
      echo "$part"
    fi
  done
}

# named_lost NODE...: those of the nodes that the run's words on standard input say are lost: a rank of
# theirs was killed, or the launcher's own process there is gone, or a rank does not answer. Of several that
# say so the first counts: it comes from mpirun's side of a link that was cut.
named_lost() {
  local node words last killed
  words="$(cat)"
  last="$(grep -aE 'all ranks end' <<<"$words" | head -n 1 || true)"
  # Of srun's words of killed tasks the first counts, if no rank has ended the others before.
  killed="$(sed '/all ranks end/,$d' <<<"$words" | sed -nE 's/^srun: error: ([^ :]+): tasks? .*: Killed$/on node \1/p' |
    head -n 1)"
  words="$(sed -nE 's/^srun: error: Node failure on ([^ ,]+).*/on node \1/p
    / exited on signal |Remote daemon:/p' <<<"$words")"$'\n'"$killed"
  for node in "$@"; do
    if grep -qE "\($node, process [0-9]+\) does not answer" <<<"$last" ||
      grep -qE "on node $node( exited on signal.*)?\$" <<<"$words"; then
      echo "$node"
    fi
  done
}

# silent NODE...: those of the nodes on which Slurm starts no process within half a minute.
silent() {
  local node pids=() at=0
  for node in "$@"; do
    timeout --kill-after=2 30 srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" true \
      >/dev/null 2>&1 </dev/null &
    pids+=("$!")
  done
  for node in "$@"; do
    wait "${pids[at++]}" || echo "$node"
  done
}

# without_placement OPTION...: sets `options_left`: the options without those that name the ranks of a
# layout that is no more.
without_placement() {
  options_left=()
  while (($# > 0)); do
    case "$1" in
      --placement | --node-ranks) shift ;;
      --placement=* | --node-ranks=*) ;;
      *) options_left+=("$1") ;;
    esac
    shift || true
  done
}
