#!/usr/bin/env bash
# The first process of a cluster, in new namespaces that are the head's: the switch, the hosts, their
# links and Slurm's daemons. Called by `cluster up`, which holds the other end of stdin: when that
# closes before the word `keep` has come, this process ends, and the kernel ends all others with it.
#
#   init.sh STATE
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
state="$1"
hosts="" rate="" slurm="" group=""
# shellcheck source=/dev/null  # written by up
source "$state/settings"
cd "$state"

network=10.77.0
prefix=16
address_of() { if [[ "$1" == head ]]; then echo "$network.254"; else echo "$network.${1#h}"; fi; }
on() { (export ATOLL_CLUSTER_STATE="$state" && exec bash "$here/host.sh" --exec "$@"); }

# shape DEVICE: what it sends is limited. A link that was idle sends one burst for nothing, so bursts are
# small: 72 KiB are one packet as the kernel passes it on (smaller ones have it cut packets). Large frames (below), since
# the cost of a packet, not of a byte, is what eats the cores.
shape() { [[ "$rate" == none ]] || tc qdisc add dev "$1" root tbf rate "$rate" burst 72k latency 50ms; }

head_up() {
  hostname head
  mount -t tmpfs tmpfs /dev/shm
  printf '127.0.0.1 localhost\n' >hosts.file
  local host
  for host in head "${names[@]}"; do printf '%s %s\n' "$(address_of "$host")" "$host"; done >>hosts.file
  mount --bind hosts.file /etc/hosts
  ip link set lo up
  ip link add eth0 type bridge
  ip address add "$(address_of head)/$prefix" dev eth0
  ip link set eth0 up
}

host_up() { # HOST
  local host="$1" process waited=0
  rm -f "hosts/$host"
  # shellcheck disable=SC2016  # the words are the inner shell's
  unshare --net --uts --ipc --mount bash -c '
    hostname "$1" && mount -t tmpfs tmpfs /dev/shm && ip link set lo up && echo $$ >"hosts/$1.new" &&
      mv "hosts/$1.new" "hosts/$1" && exec sleep infinity' bash "$host" </dev/null &
  process=$!
  until [[ -f "hosts/$host" ]]; do
    if ! kill -0 "$process" || ((waited++ > 1000)); then
      printf 'host %s did not start\n' "$host"
      exit 1
    fi
    sleep 0.01
  done
  ip link add "$host" mtu 9000 type veth peer name eth0 mtu 9000 netns "$process"
  ip link set "$host" master eth0 up
  shape "$host"
  nsenter --target "$process" --net bash -c "
    ip address add $(address_of "$host")/$prefix dev eth0
    ip link set eth0 up"
  [[ "$rate" == none ]] ||
    nsenter --target "$process" --net tc qdisc add dev eth0 root tbf rate "$rate" burst 72k latency 50ms
}

write_slurm_conf() {
  cat >slurm.conf <<CONF
ClusterName=atoll
SlurmctldHost=head($(address_of head))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/dev/shm/munge.socket
CredType=cred/munge
StateSaveLocation=$state/slurmctld
SlurmdSpoolDir=/dev/shm/slurmd
SlurmctldPidFile=/dev/shm/slurmctld.pid
SlurmdPidFile=/dev/shm/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0
ReturnToService=2
KillWait=5
NodeName=h[1-$hosts] NodeAddr=$network.[1-$hosts] CPUs=64 Gres=gpu:8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  # Slurm counts a node's GPUs by files that stand for them.
  mkdir gpus
  touch gpus/gpu{0..7}
  printf 'NodeName=h[1-%s] Name=gpu File=%s/gpus/gpu[0-7]\n' "$hosts" "$state" >gres.conf
  # Nothing here needs control groups; this plug-in asks for none, the other one for systemd.
  printf 'CgroupPlugin=cgroup/v1\n' >cgroup.conf
  # PMIx makes a folder for each step, of one name on all hosts: not in the /tmp that they share.
  printf 'PMIxCliTmpDirBase=/dev/shm\n' >mpi.conf
}

munge_up() { # HOST
  on "$1" munged --force --key-file="$state/munge.key" --socket=/dev/shm/munge.socket \
    --pid-file=/dev/shm/munge.pid --seed-file=/dev/shm/munge.seed --log-file="$state/munged.$1.log"
}

slurm_up() {
  write_slurm_conf
  mkdir slurmctld
  (umask 077 && head -c 1024 /dev/urandom >munge.key)
  local host waited=0
  for host in head "${names[@]}"; do munge_up "$host"; done
  on head slurmctld
  for host in "${names[@]}"; do on "$host" slurmd -N "$host"; done
  until [[ "$(on head sinfo --noheader --format=%D --states=idle)" == "$hosts" ]]; do
    if ((waited++ > 300)); then
      on head sinfo --long || true
      return 1
    fi
    sleep 0.1
  done
}

# Linux shares a busy machine between sessions first (autogroups), and every Slurm task is in one of its
# own: then a rank that waits, giving its core away, gives it to its own session only, and runs of many
# ranks take ten times as long. Processes in a group of their own are not grouped by session.
[[ -z "$group" ]] || echo 0 >"$group/cgroup.procs" || true

say_why() {
  local code=$?
  printf 'ended with exit code %s\n' "$code"
  tail -n 3 ./*.log 2>/dev/null || true
}
trap say_why EXIT

names=()
for ((i = 1; i <= hosts; ++i)); do names+=("h$i"); done
mkdir hosts
export ATOLL_CLUSTER_FOLDER="$state"
head_up
for host in "${names[@]}"; do host_up "$host"; done
[[ "$slurm" != yes ]] || slurm_up
touch ready
read -r word # ends the script at the end of the pipe
[[ "$word" == keep ]]
sleep infinity &
while true; do wait || true; done # a first process has to bury those whose parents are gone
