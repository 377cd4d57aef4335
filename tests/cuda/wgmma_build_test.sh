#!/usr/bin/env bash
# What the compiler makes of the kernels for warpgroups: no spills, no products one after the other,
# no more shared memory than there is, and the instructions that they are there for. No GPU needed.
# With ATOLL_ALL also the kernels of float16. Argument or ATOLL_SOURCE: the repository.
set -euo pipefail
cd "${1:-${ATOLL_SOURCE:-$(dirname "${BASH_SOURCE[0]}")/../..}}"

nvcc="$(command -v nvcc || true)"
[[ -n "$nvcc" ]] || nvcc=/usr/local/cuda/bin/nvcc
[[ -x "$nvcc" ]] || {
  printf 'skipped: no nvcc here\n'
  exit 77
}
ptxas="$(command -v ptxas || printf '%s/ptxas' "$(dirname "$(readlink -f "$nvcc")")")"
[[ -x "$ptxas" ]] || {
  printf 'skipped: no ptxas beside %s\n' "$nvcc"
  exit 77
}
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

types=(bf16)
[[ -n "${ATOLL_ALL:-}" ]] && types+=(f16)
for type in "${types[@]}"; do
  "$nvcc" -std=c++20 -O3 --fmad=false -I. -arch=sm_90a -ptx -o "$work/$type.ptx" \
    "compute/cuda/kernels/attention_wgmma_$type.cu"
  "$ptxas" -O3 -v --gpu-name sm_90a -o "$work/$type.cubin" "$work/$type.ptx" 2>"$work/$type.log" || {
    cat "$work/$type.log"
    exit 1
  }
done

# Older cards' code has none of it, and still compiles.
for source in attention_wgmma_bf16 wgmma_check; do
  "$nvcc" -std=c++20 -O3 --fmad=false -I. -arch=sm_80 -ptx -o "$work/older.ptx" "compute/cuda/kernels/$source.cu"
  if grep -q wgmma.mma_async "$work/older.ptx"; then
    printf 'FAILED: wgmma in %s for architecture 80\n' "$source"
    exit 1
  fi
done

# A disassembler does not come with the compiler; PyPI's triton has one.
cuobjdump="${ATOLL_CUOBJDUMP:-$(command -v cuobjdump || true)}"
if [[ -z "$cuobjdump" ]]; then
  cuobjdump="$(python3 - 2>/dev/null <<'EOF' || true
import importlib.util, pathlib
spec = importlib.util.find_spec("triton")
found = pathlib.Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
print(found if found.exists() else "")
EOF
  )"
fi
if [[ -n "$cuobjdump" ]]; then
  for type in "${types[@]}"; do "$cuobjdump" -sass "$work/$type.cubin" >"$work/$type.sass"; done
else
  printf 'left out: HGMMA in the disassembly (no cuobjdump here; PyPI'\''s triton has one: ATOLL_CUOBJDUMP)\n'
fi

python3 - "$work" "${types[@]}" <<'EOF'
import pathlib, re, sys

folder, types = pathlib.Path(sys.argv[1]), sys.argv[2:]
failures = []


def expect(good, what):
    if not good:
        failures.append(what)


for kind in types:
    log = (folder / f"{kind}.log").read_text()
    serialized = re.findall(r".*wgmma.*serialized.*", log)
    expect(not serialized, f"{kind}: {serialized[:2]}")
    # One block for each kernel: its name, what it spills, what it uses.
    kernels = re.findall(r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
                         r"(\d+) bytes spill loads.*?Used (\d+) registers", log, re.S)
    expect(len(kernels) >= 5, f"{kind}: {len(kernels)} kernels in ptxas's report")
    for name, stack, stores, loads, registers in kernels:
        # GroupVariant<T, head_dim, row groups, column groups, stages, queries' place, totals' place>
        head_dim, rows, columns, stages = [int(n) for n in re.findall(r"Li(\d+)E", name)[:4]]
        queries, totals = [int(n) for n in re.search(r"PlaceE(\d)ELS\w+?_(\d)E", name).groups()]
        results = rows * 64 * head_dim
        ring = stages * 64 * min(head_dim, 256) * 2
        shared = ring + (results * 2 if queries else 16) + (results * 4 if totals == 1 else 16) + 4
        shared = (shared + 1023) // 1024 * 1024
        print(f"{kind} head_dim {head_dim:3} rows {rows * 64:3} threads {rows * columns * 128:3}: "
              f"{registers} registers, {stores} + {loads} bytes spilled, {shared} bytes of shared memory")
        # Of the widest, six registers' worth: addresses, kept over barriers.
        expect(int(stores) <= (24 if head_dim == 512 else 0), f"{name} spills {stores} + {loads} bytes")
        expect(int(registers) * rows * columns * 128 <= 65536, f"{name} has {registers} registers a thread")
        expect(shared <= 232448, f"{name} takes {shared} bytes of shared memory")
        if rows * columns == 1:  # decode: two blocks on a multiprocessor
            expect(int(registers) <= 255 and 2 * (shared + 1024) <= 233472, f"{name}: one block at a time")
    ptx = (folder / f"{kind}.ptx").read_text()
    for needed in (f"wgmma.mma_async.sync.aligned.m64n64k16.f32.{kind}.{kind}",
                   f"wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}.{kind}", "wgmma.fence.sync.aligned",
                   "wgmma.commit_group.sync.aligned", "wgmma.wait_group.sync.aligned",
                   "fence.proxy.async.shared::cta"):
        expect(needed in ptx, f"{kind}: no {needed} in the PTX")
    sass = folder / f"{kind}.sass"
    if sass.exists():
        steps = {}  # of each function: products, waits, exponentials, in their order
        for line in sass.read_text().splitlines():
            found = re.search(r"Function : (\S+)", line)
            if found:
                function = steps[found.group(1)] = []
            for step in re.findall(r"HGMMA|MUFU\.EX2|WARPGROUP\.DEPBAR", line):
                function.append(step)
        count = [found.count("HGMMA") for found in steps.values()]
        print(f"{kind} HGMMA in the disassembly: {count}")
        expect(len(count) == len(kernels) and min(count, default=0) >= 12, f"{kind}: HGMMA {count}")
        # The softmax runs beside products: between them and the wait for them.
        for name, found in steps.items():
            beside = re.search(r"(HGMMA )+(WARPGROUP\.DEPBAR )?(MUFU\.EX2 ){32,}WARPGROUP\.DEPBAR", " ".join(found))
            expect(beside, f"{name}: nothing runs beside the products")
for failure in failures:
    print("FAILED:", failure)
sys.exit(1 if failures else 0)
EOF
