#!/usr/bin/env bash
# Every shell script parses, stops at its first error, and is clean under ShellCheck.
# Argument: the repository (default: the one this script is in).
set -euo pipefail
cd "${1:-$(dirname "${BASH_SOURCE[0]}")/../..}"

mapfile -t scripts < <(find jobs tests perf .ci -type f \( -name '*.sh' -o -path '.ci/run' \
  -o -path jobs/cluster/cluster \) | sort)
((${#scripts[@]} > 0))
for script in "${scripts[@]}"; do
  bash -n "$script"
  case "$script" in
    */common.sh) ;; # sourced: its caller has set the options
    *) grep -q '^set -euo pipefail$' "$script" || {
      printf '%s: lacks "set -euo pipefail"\n' "$script"
      exit 1
    } ;;
  esac
done
if ! command -v shellcheck >/dev/null; then
  printf 'skipped: no shellcheck here (package shellcheck); %d scripts parse\n' "${#scripts[@]}"
  exit 77
fi
shellcheck -x "${scripts[@]}"
printf '%d scripts are clean\n' "${#scripts[@]}"
