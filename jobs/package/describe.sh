#!/usr/bin/env bash
# Writes what shells and man show of the program, from what it says itself:
#
#   jobs/package/describe.sh ATOLL FOLDER     FOLDER/atoll.1 and FOLDER/atoll, bash's completion
# shellcheck disable=SC2016  # what is written is for another shell
set -euo pipefail
(($# == 2)) || {
  sed -n '2,4s/^# \{0,1\}//p' "$0"
  exit 2
}
atoll="$1" folder="$2"
mkdir -p "$folder"
version="$("$atoll" --version | sed -n '1s/^atoll //p')"
top="$("$atoll" --help)"
mapfile -t commands < <(sed -n '/^Subcommands:/,$s/^  \([a-z]\{1,\}\) .*/\1/p' <<<"$top")
((${#commands[@]} > 0)) || {
  printf 'describe.sh: %s --help names no commands\n' "$atoll" >&2
  exit 1
}

# Of a text to roff, kept as it is: backslashes, hyphens, and lines that begin like requests.
verbatim() {
  printf '.nf\n'
  sed -e 's/\\/\\e/g' -e 's/-/\\-/g' -e "s/^\([.']\)/\\\\\&\1/"
  printf '.fi\n'
}

{
  printf '.TH ATOLL 1 "" "atoll %s" "User Commands"\n' "$version"
  printf '.SH NAME\natoll \\- batch inference of Mixture\\-of\\-Experts models as an MPI job\n'
  printf '.SH SYNOPSIS\n.B atoll\n.I COMMAND\n.RI [ OPTION ...]\n.br\n.B mpirun \\-n\n.I N\n.B atoll run\n.RI [ OPTION ...]\n'
  printf '.SH DESCRIPTION\n'
  sed '/^Usage:/,$d' <<<"$top"
  printf '.SH COMMANDS\n'
  for command in "${commands[@]}"; do
    printf '.SS %s\n' "$command"
    "$atoll" "$command" --help | verbatim
  done
  printf '.SH EXIT STATUS\n'
  printf '.TP\n.B %s\n%s\n' 0 "success" 1 "a failure, with one message on standard error" 2 "wrong use" \
    65 "no request could be served; results are written, each with its error" \
    75 "stopped by a signal, to be run again with \\-\\-resume"
  printf '.SH FILES\nJob scripts are in share/atoll/jobs of the installation.\n'
} >"$folder/atoll.1"

{
  printf '# Completion of atoll %s for bash.\n_atoll() {\n' "$version"
  printf '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"\n'
  printf '  if ((COMP_CWORD == 1)); then\n    mapfile -t COMPREPLY < <(compgen -W "%s --help --version" -- "$word")\n    return\n  fi\n' \
    "${commands[*]}"
  printf '  case "${COMP_WORDS[1]} $before" in\n'
  for command in "${commands[@]}"; do
    "$atoll" "$command" --help | sed -nE 's/^  (-[a-z],)?(--[a-z-]+) [A-Z]+:\{([^}]*)\}.*/\2 \3/p' |
      while read -r option values; do
        printf '    "%s %s") mapfile -t COMPREPLY < <(compgen -W "%s" -- "$word") && return ;;\n' \
          "$command" "$option" "${values//,/ }"
      done
  done
  printf '  esac\n  case "${COMP_WORDS[1]}" in\n'
  for command in "${commands[@]}"; do
    options="$("$atoll" "$command" --help | sed -nE 's/^  (-[a-z],)?(--[a-z-]+).*/\2/p' | xargs)"
    printf '    %s) [[ "$word" != -* ]] || mapfile -t COMPREPLY < <(compgen -W "%s" -- "$word") ;;\n' \
      "$command" "$options"
  done
  printf '  esac\n}\ncomplete -o default -F _atoll atoll\n'
} >"$folder/atoll"
