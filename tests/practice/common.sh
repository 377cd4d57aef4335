# shellcheck shell=bash
# What the practice tests share: the end-to-end tests' helpers, a small model and single runs. Each
# test is one thing that people met in practice, reduced to seconds, with the right value asserted.
# shellcheck source-path=SCRIPTDIR source=../e2e/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../e2e/common.sh"

# Inline Python may `import make_model`.
export PYTHONPATH="$ATOLL_SOURCE/tests/e2e" PYTHONDONTWRITEBYTECODE=1

# small_folder KIND FOLDER: a Hugging Face folder with random weights (qwen3-moe, mixtral, olmoe).
small_folder() { python3 "$ATOLL_SOURCE/tests/e2e/make_model.py" "$1" "$sample" "$2"; }

# run_one OPTIONS...: atoll run in one process.
run_one() { capture "$ATOLL" run --progress none "$@"; }

# check WHAT COMMAND...: COMMAND ends with 0.
check() {
  local what="$1"
  shift
  if "$@" >/dev/null 2>&1; then passed; else failed "$what"; fi
}
