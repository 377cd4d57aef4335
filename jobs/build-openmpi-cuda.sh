#!/usr/bin/env bash
# Builds an Open MPI that moves CUDA device memory, from the distribution's own source package, for
# machines whose Open MPI was built without CUDA. About 25 minutes on two cores. Programs that were
# built with the distribution's Open MPI run on it unchanged.
#
#   jobs/build-openmpi-cuda.sh [--configure-only] PREFIX
#
#   PREFIX            where it is installed (needs no root, but the build packages do)
#   --configure-only  stop after configure, to see whether everything is there
#   CUDA_HOME         the CUDA toolkit (default: the one whose nvcc is on PATH, or /usr/local/cuda)
#   BUILD_FOLDER      where to unpack and build (default: a new folder under TMPDIR, deleted at the end)
#
# Afterwards:
#   export PATH=PREFIX/bin:$PATH LD_LIBRARY_PATH=PREFIX/lib OPAL_PREFIX=PREFIX
#   mpirun --mca pml ob1 ... atoll run --backend cuda ...
# (ob1, because the distribution's UCX knows no CUDA.) atoll tries device pointers before it uses them
# and says in its report which transport it took.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

configure_only=false
prefix=""
for argument in "$@"; do
  case "$argument" in
    -h | --help)
      print_head_comment "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --configure-only) configure_only=true ;;
    -*) die "unknown option $argument; see --help" ;;
    *)
      [[ -z "$prefix" ]] || die "more than one PREFIX ($prefix, $argument); see --help"
      prefix="$argument"
      ;;
  esac
done
[[ -n "$prefix" ]] || die "no PREFIX given; see --help"
mkdir -p "$prefix" || die "cannot create $prefix; choose a folder you may write to"
prefix="$(cd "$prefix" && pwd)"

cuda="${CUDA_HOME:-}"
if [[ -z "$cuda" ]]; then
  if command -v nvcc >/dev/null; then
    cuda="$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")"
  else
    cuda=/usr/local/cuda
  fi
fi
[[ -f "$cuda/include/cuda.h" || -n "$(compgen -G "$cuda/targets/*/include/cuda.h")" ]] ||
  die "no CUDA toolkit at $cuda (cuda.h is missing); set CUDA_HOME"
if ! command -v apt-get >/dev/null || ! command -v dpkg-source >/dev/null; then
  die "needs apt and dpkg-dev (Debian and its relatives); elsewhere build Open MPI --with-cuda by hand"
fi

as_root=()
((EUID == 0)) || as_root=(sudo)
log="$(mktemp)"
finish() {
  rm -f "$log"
  [[ -n "${BUILD_FOLDER:-}" || -z "${folder:-}" ]] || rm -rf "$folder"
}
trap finish EXIT
# quietly WHAT COMMAND...: its output is shown only where it fails.
quietly() {
  local what="$1"
  shift
  say "$what"
  "$@" >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    die "$what failed (the end of its output is above)"
  }
}

# Source packages have a list of their own, which must be switched on.
sources="$(mktemp -d)"
sed -E 's/^(Types:.*)$/Types: deb-src/; s/^deb +/deb-src /' /etc/apt/sources.list.d/debian.sources \
  >"$sources/source.sources" 2>/dev/null || rm -f "$sources/source.sources"
if [[ ! -s "$sources/source.sources" ]]; then
  rm -f "$sources/source.sources"
  sed -E 's/^deb +/deb-src /' /etc/apt/sources.list >"$sources/source.list"
fi
apt_source=(-o "Dir::Etc::SourceParts=$sources" -o Dir::Etc::SourceList=/dev/null
  -o "Dir::State::Lists=$sources/lists")
mkdir -p "$sources/lists/partial"
packages=(build-essential libhwloc-dev libevent-dev libucx-dev libslurm-dev zlib1g-dev flex)
if ! dpkg-query -W "${packages[@]}" >/dev/null 2>&1; then
  quietly "installing ${packages[*]}" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -q -y install --no-install-recommends "${packages[@]}"
fi

folder="${BUILD_FOLDER:-$(mktemp -d "${TMPDIR:-/tmp}/openmpi-cuda.XXXXXX")}"
mkdir -p "$folder"
cd "$folder"
quietly "reading the lists of source packages" apt-get "${apt_source[@]}" update
quietly "unpacking the source of Open MPI" apt-get "${apt_source[@]}" source openmpi
rm -rf "$sources"
tree="$(find . -maxdepth 1 -type d -name 'openmpi-*' | head -n 1)"
[[ -n "$tree" ]] || die "apt-get source openmpi left no folder in $folder"
cd "$tree"
# Patches made some files newer than what is generated from them; make would ask for automake.
find . -exec touch -h -d 2021-01-01 {} +
quietly "configuring" ./configure --prefix="$prefix" --with-cuda="$cuda" --with-ucx=/usr \
  --with-hwloc=external --with-libevent=external --with-pmix=internal --with-slurm \
  --disable-mpi-fortran --disable-oshmem --disable-static \
  --enable-mca-no-build=btl-uct,coll-ml
grep -q 'OPAL_CUDA_SUPPORT 1' opal/include/opal_config.h ||
  die "configure found no CUDA support in $cuda (see $folder/$tree/config.log)"
if $configure_only; then
  say "configured with CUDA from $cuda; not built, as asked"
  exit 0
fi
quietly "building (about 25 minutes on two cores)" make -j"$(nproc)"
quietly "installing into $prefix" make install-strip
"$prefix/bin/ompi_info" --parsable --all | grep -q 'mpi_built_with_cuda_support:value:true' ||
  die "$prefix/bin/ompi_info does not say that it was built with CUDA support"
say "done: export PATH=$prefix/bin:\$PATH LD_LIBRARY_PATH=$prefix/lib OPAL_PREFIX=$prefix"
