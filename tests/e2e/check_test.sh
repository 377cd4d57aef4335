#!/usr/bin/env bash
# `atoll check` on a cluster of namespaces: of a sound one it says nothing; a slower link, fewer cores, a full
# /dev/shm, two ranks on one core, blocked datagrams and a missing file system are each named in one line.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cluster="$ATOLL_SOURCE/jobs/cluster/cluster"
export TMPDIR="$work" ATOLL_CLUSTER="check-$$"
if ! reason="$("$cluster" probe --no-slurm)"; then
  printf 'skipped: %s\n' "$reason"
  exit 77
fi
trap '"$cluster" down || true; rm -rf "$work"' EXIT
mkdir "$work/shared"

# By itself, without a launcher.
capture "$ATOLL" check --folder "$work/shared" --report "$work/one.json"
succeeds "one process" || true
json_check "report of one process" "$work/one.json" <<'PY'
(report,) = lines
assert report["sound"] and not report["problems"] and len(report["ranks"]) == 1, report
assert report["ranks"][0]["flops_per_s"] > 1e8 and report["folder"]["write_bytes_per_s"] > 0, report
PY
capture "$ATOLL" check --folder "$work/nothing"
refused "a folder that is not there" 1 '1 problem'
if grep -q '^problem: rank 0 .*cannot write to .*/nothing' "$work/stdout"; then passed; else failed "no folder: $(cat "$work/stdout")"; fi
capture "$ATOLL" check --report "$work/nothing/report.json"
refused "a report that cannot be written" 1 'nothing/report.json'

cd "$work"
capture "$cluster" up 4 --rate 500mbit --no-slurm
succeeds "up" || finish

# What cores and links do is judged by measuring, which other work disturbs: with ATOLL_ALL everywhere, else
# only where the slower link has to be found.
rates=(--no-rates)
[[ -z "${ATOLL_ALL:-}" ]] || rates=()
# looked RANKS COMMAND...: runs a check on all four hosts.
looked() {
  local ranks="$1"
  shift
  capture "$cluster" run -n "$ranks" "$@" "$ATOLL" check --folder "$work/shared" --report "$work/report.json" "${rates[@]}"
}
# finds WHAT PATTERN: the last check found this and nothing else.
finds() {
  if ((code == 1)) && [[ "$(grep -c '^problem: ' "$work/stdout")" == 1 ]] &&
    grep -qE -- "^problem: $2" "$work/stdout"; then
    passed
  else
    failed "$1: exit code $code"
    show_output
  fi
}
on_host() { # HOST COMMAND...
  capture "$cluster" on "$@"
  succeeds "on $*" || true
}

looked 4
succeeds "a sound cluster" || true
if grep -qx 'no problem found' "$work/stdout"; then passed; else failed "sound: $(cat "$work/stdout")"; fi
json_check "report of four" "$work/report.json" <<'PY'
(report,) = lines
assert report["nodes"] == ["h1", "h2", "h3", "h4"] and len(report["pairs"]) in (0, 6), report
assert report["folder"]["locks"] and all(rank["sees_lock"] for rank in report["ranks"]), report["ranks"]
assert all(transport["passed"] for transport in report["transports"])
PY

on_host h2 tc qdisc change dev eth0 root tbf rate 50mbit burst 72k latency 50ms
quick=("${rates[@]}") rates=()
looked 4
rates=("${quick[@]}")
if ((code == 1)) && grep -qE '^problem: h2: its link carries .* MB/s where others' "$work/stdout"; then
  passed
else
  failed "a slower link: exit code $code"
  show_output
fi
json_check "pairs of a slower link" "$work/report.json" <<'PY'
(report,) = lines
rate = {tuple(pair["nodes"]): pair["bytes_per_s"] for pair in report["pairs"]}
assert len(rate) == 6 and all(rate > 0 for rate in rate.values()), report["pairs"]
PY
on_host h2 tc qdisc change dev eth0 root tbf rate 500mbit burst 72k latency 50ms

if (($(nproc) > 1)); then
  # shellcheck disable=SC2016  # for the shells of the ranks
  on_h3='if [[ "$(hostname)" == h3 ]]; then exec taskset -c 0 "$@"; fi; exec "$@"'
  looked 4 bash -c "$on_h3" bash
  finds "half the cores" 'h3: has 1 cores \(.*\) where others have'
  looked 8 bash -c "$on_h3" bash
  if ((code == 1)) && grep -qE '^problem: h3: ranks 4-5 share core 0: 2 ranks on 1' "$work/stdout"; then
    passed
  else
    failed "two ranks on one core: exit code $code"
    show_output
  fi
else
  printf 'left out: cores (there is one)\n'
fi

on_host h4 mount -o remount,size=40m /dev/shm
looked 4
finds "little /dev/shm" 'h4: /dev/shm has [0-9]* of 4[0-2] MB free'
on_host h4 mount -o remount,size=4m /dev/shm # MPI may not start
looked 4
if ((code == 1)) && grep -q '^check: h4: /dev/shm has little room' "$work/stderr"; then
  passed
else
  failed "a full /dev/shm: exit code $code"
  show_output
fi
on_host h4 mount -o remount,size=50% /dev/shm

capture "$cluster" on h2 ip rule add ipproto udp blackhole
if ((code == 0)); then
  looked 4
  finds "blocked datagrams" 'h2: no datagrams \(UDP\) between it and other nodes'
  on_host h2 ip rule del ipproto udp blackhole
else
  printf 'left out: blocked datagrams (%s)\n' "$(tail -n 1 "$work/stderr")"
fi

on_host h3 mount -t tmpfs none "$work/shared"
looked 4
finds "a missing file system" "h3: $work/shared is another folder"

capture "$cluster" down
succeeds "down" || true
finish
