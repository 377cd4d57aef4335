#!/usr/bin/env bash
# What a job takes from the machine it runs on, in one place: modules or Spack, the launcher and its flags,
# the executable. Sourced by the job scripts. Edit it for a site, or set before sbatch:
#
#   ATOLL_MODULES   modules to load, e.g. "gcc/12 cuda/12.4 openmpi/4.1.6-cuda hdf5/1.14-mpi"
#   ATOLL_SPACK     a Spack environment to activate (made from jobs/spack.yaml)
#   ATOLL           the executable; else build/cuda/app/atoll, build/cpu/app/atoll, the installation that
#                   this script is of, or that on PATH
#   ATOLL_LAUNCHER  mpirun (unless set, where there is one) or srun, which needs the PMI of this MPI
#   ATOLL_MPIRUN    mpirun's flags; `--bind-to none` unless set, since jobs/bind.sh chooses the cores
#   ATOLL_SRUN      srun's flags; --mpi=pmix or pmi2, whichever the MPI library takes, unless set
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# The functions of module systems and of Spack read variables that are not set.
set +u
if [[ -n "${ATOLL_MODULES:-}" ]]; then
  command -v module >/dev/null || die "no module command in this shell (ATOLL_MODULES is set);" \
    "source the site's module system in jobs/env.sh"
  module purge
  # shellcheck disable=SC2086  # a list of words
  module load $ATOLL_MODULES
fi
if [[ -n "${ATOLL_SPACK:-}" ]]; then
  command -v spack >/dev/null || die "no spack command in this shell (ATOLL_SPACK is set);" \
    "source Spack's share/spack/setup-env.sh in jobs/env.sh"
  spack env activate "$ATOLL_SPACK"
fi
set -u

if [[ -z "${ATOLL:-}" ]]; then
  for ATOLL in "$repository"/build/{cuda,cpu}/app/atoll "$repository/../../bin/atoll" \
    "$(command -v atoll || true)"; do
    [[ ! -x "$ATOLL" ]] || break
  done
fi
[[ -x "$ATOLL" ]] || die "no executable \"$ATOLL\"; build Atoll (README) or set ATOLL to it"
launcher="$(chosen_launcher)"
[[ "${launcher##*/}" == mpirun || "${launcher##*/}" == srun ]] ||
  die "ATOLL_LAUNCHER is \"$launcher\"; it may be mpirun or srun"
command -v "$launcher" >/dev/null || die "no $launcher on PATH; set ATOLL_MODULES or ATOLL_SPACK"
job_options "$launcher" "$ATOLL"

# What software this is, for the job's folder.
print_modules() {
  printf 'modules: %s\n' "${LOADEDMODULES:-none}"
  printf 'Spack environment: %s\n' "${SPACK_ENV:-none}"
  printf 'launcher: %s %s\n' "$launcher" "${launcher_options[*]}"
  "$launcher" --version | head -n 1
  if command -v ucx_info >/dev/null; then ucx_info -v | head -n 1; fi
  printf '\nlibraries of %s:\n' "$ATOLL"
  ldd "$ATOLL" || true # a static executable, or a script around it
}
