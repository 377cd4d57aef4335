#!/usr/bin/env bash
# The machine code of the attention kernels: matrices are loaded by ldmatrix (LDSM), also those of float16,
# whose rows lie 16 bytes apart modulo 32, which PTX does not promise to load fragments from; no load asks at
# run time which memory it reads (LD); and only the kernel that is known to spills registers.
# ATOLL is a program of the build; cuobjdump (with nvdisasm) is the toolkit's, or PyPI's nvidia-cuda-cuobjdump.
set -euo pipefail

archive="$(dirname "$ATOLL")/../../compute/libatoll_cuda_kernels.a"
[[ -f "$archive" ]] || {
  printf 'skipped: no %s (built without CUDA)\n' "$archive"
  exit 77
}
cuobjdump="$(command -v cuobjdump || true)"
for folder in "${CUDA_PATH:-/usr/local/cuda}/bin" /usr/local/cuda/bin; do
  [[ -n "$cuobjdump" || ! -x "$folder/cuobjdump" ]] || cuobjdump="$folder/cuobjdump"
done
[[ -n "$cuobjdump" ]] || {
  printf 'skipped: no cuobjdump here (of the CUDA toolkit, or PyPI: nvidia-cuda-cuobjdump)\n'
  exit 77
}

work="$(mktemp -d "${TMPDIR:-/tmp}/atoll-sass.XXXXXX")"
trap 'rm -rf "$work"' EXIT
"$cuobjdump" -sass "$archive" >"$work/sass"
python3 - "$work/sass" <<'PYTHON'
import collections, re, sys

kernels = collections.defaultdict(collections.Counter)
name = None
with open(sys.argv[1], encoding="utf-8") as sass:
    for line in sass:
        if found := re.search(r"Function : (\S+)", line):
            name = found[1]
        elif name and (found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", line)):
            kernels[name][found[1].split(".")[0]] += 1

most_spills = {"Li128ELi128E": 20}  # head dimension and rows
checked = failed = 0
for name, count in sorted(kernels.items()):
    variant = re.search(r"16attention_kernelINS\d?_\d?\d*7VariantI\d+[a-z_0-9]+?((?:Li\d+E)+)", name)
    if not variant:
        continue
    checked += 1
    spills = count["LDL"] + count["STL"]
    allowed = max((most for which, most in most_spills.items() if variant[1].startswith(which)), default=0)
    wrong = [text for text, is_so in (("no LDSM", count["LDSM"] == 0), ("no HMMA", count["HMMA"] == 0),
                                      (f"{count['LD']} LD", count["LD"] > 0),
                                      (f"{spills} spills (at most {allowed})", spills > allowed)) if is_so]
    if wrong:
        failed += 1
        print(f"FAILED: {name}: {', '.join(wrong)}")
print(f"{checked} attention kernels checked, {failed} failed")
sys.exit(failed > 0 or checked == 0)
PYTHON
