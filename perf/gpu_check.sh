#!/usr/bin/env bash
# Everything that needs a GPU, in three calls of at most nine and a half minutes each.
#
#   perf/gpu_check.sh [option...] right|fast|together
#
#   right     are the results right: tests of the kernels and the backend, the same bits at the sizes of
#             real models, ranks that share the GPU, compute-sanitizer
#   fast      where the time goes: each kernel, GEMM and layer against what the device reaches, PyTorch
#             beside it, hardware counters
#   together  ranks: messages from device memory by each transport, 2, 4 and 16 ranks with traces
#
#   --output FOLDER   where the results go (default: build/gpu-check)
#   --bundle FILE     what perf/gpu_bundle.py packed (default: build/gpu-bundle.tar.xz, where there is one)
#   --build FOLDER    a build of preset cuda instead (default, without a bundle: build/cuda)
#   --minutes N       what has not begun by then is left out (default: 9.5)
#
# It needs a driver, CUDA's libraries, python3 and bash. The folder gets PART.txt, a table with a line a
# step and a measurement (PASSED, FAILED, or NOT RUN with the reason; what was measured, what the device's
# own rates allow, the fraction of it), and PART-N.tar with all logs, reports and traces, each file
# gzipped; both are written again after every step, so that a call that is cut short leaves what it came
# to. At most 8 files of 16 MiB.
# Exit code 1 when something failed, 77 when no GPU is there and nothing failed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../jobs/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../jobs/common.sh"

output="$repository/build/gpu-check"
bundle=""
build=""
minutes=9.5
part=""
while (($# > 0)); do
  case "$1" in
    --output | --bundle | --build | --minutes)
      (($# > 1)) || die "$1 needs a value"
      case "$1" in
        --output) output="$2" ;;
        --bundle) bundle="$2" ;;
        --build) build="$2" ;;
        --minutes) minutes="$2" ;;
      esac
      shift 2
      ;;
    -h | --help)
      print_head_comment "${BASH_SOURCE[0]}"
      exit 0
      ;;
    right | fast | together)
      [[ -z "$part" ]] || die "one part a call, not $part and $1 (see --help)"
      part="$1"
      shift
      ;;
    *) die "unknown argument $1 (see --help)" ;;
  esac
done
[[ -n "$part" ]] || die "which part: right, fast or together? (see --help)"
[[ "$minutes" =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--minutes takes a number, not '$minutes'"
export PATH # of an empty environment, the shell's own
command -v python3 >/dev/null || die "no python3 on PATH"

folder="$repository/perf/gpu_check"
mkdir -p "$output"
output="$(cd "$output" && pwd)"
# shellcheck source-path=SCRIPTDIR source=gpu_check/steps.sh
source "$folder/steps.sh"
begin_part "$part"
find_programs
find_device
# shellcheck disable=SC1090  # one of right.sh, fast.sh, together.sh
source "$folder/$part.sh"
end_part
