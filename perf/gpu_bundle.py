#!/usr/bin/env python3
"""Packs what perf/gpu_check.sh runs into one file, for a machine that has a driver, CUDA's libraries and
python3, and neither MPI nor HDF5 nor oneDNN: programs, an Open MPI, and the libraries of both.

    perf/gpu_bundle.py [--build build/cuda] [--mpi PREFIX] [--emulated] [--preset N] [FILE]

    FILE          default: build/gpu-bundle.tar.xz, where gpu_check.sh looks for it
    --build       a build of preset cuda, with its target cuda_tests
    --mpi PREFIX  an Open MPI in a folder of its own, as jobs/build-openmpi-cuda.sh makes it; without, that
                  of the mpirun on PATH. Programs need not be built with it: its libraries' names decide.
    --preset N    how hard xz tries, 0 to 9 (default: 9)
    --emulated    programs on the emulated device in place of those for a GPU: to rehearse gpu_check.sh

In it: bin/, lib/ (with UCX's modules in lib/ucx), mpi/, `about` (KEY=VALUE, what it was made of) and
`environment` (KEY=VALUE, @ROOT@ is where it is unpacked). Programs are stripped, equal files are there
once. Left out are glibc, libstdc++ and libgcc (the other machine's must be as new as this one's), CUDA's
libraries and the driver. Exit code 1 where the file and the repository's tracked files together are
larger than 60 MiB, which is what a runner of remote commands may take; one to rehearse with stays here.
"""

import argparse
import hashlib
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
MOST_BYTES = 60 << 20
# What every machine has, and what belongs to the machine with the GPU.
NOT_PACKED = re.compile(
    r"^(linux-vdso|ld-linux.*|libc|libm|libpthread|libdl|librt|libutil|libresolv|libstdc\+\+|libgcc_s"
    r"|libcuda|libcudart|libcublas|libcublasLt|libcupti|libnvidia.*|libnvrtc.*|libnvJitLink)\.so")


def fail(message):
    sys.exit(f"gpu_bundle.py: {message}")


def output_of(*command, check=True, **variables):
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})
    if check and done.returncode != 0:
        fail(f"{' '.join(map(str, command))} failed: {done.stderr.strip()}")
    return done.stdout


def programs_of(build, emulated):
    """{name in the bundle: path}"""
    if emulated:
        programs = {"atoll": build / "tests/emulated_cuda/atoll_emulated"}
        found = [*build.glob("tests/cuda/emulated_*"), *build.glob("perf/emulated_*")]
        names = {path: "gpu_" + path.name.removeprefix("emulated_").removeprefix("gpu_") for path in found}
    else:
        programs = {"atoll": build / "app/atoll"}
        names = {path: path.name for path in [*build.glob("tests/cuda/gpu_*"), *build.glob("perf/gpu_*")]}
    programs |= {name: path for path, name in names.items() if path.is_file() and os.access(path, os.X_OK)}
    needed = ["atoll", "gpu_bench", "gpu_exchange_bench", "gpu_attention", "gpu_backend"]
    missing = [name for name in needed if name not in programs or not programs[name].exists()]
    if missing:
        fail(f"{build} lacks {', '.join(missing)}; build it first (cmake --build {build} --target cuda_tests)")
    return programs


def libraries_of(paths, search=()):
    """{name: path} of the shared libraries that these files load, but those that are not packed."""
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, search))}
    found = {}
    for path in paths:
        text = subprocess.run(["ldd", path], capture_output=True, text=True, env=environment, check=False).stdout
        for name, where in re.findall(r"^\s*(\S+) => (/\S+)", text, re.MULTILINE):
            if not NOT_PACKED.match(name):
                found[name] = pathlib.Path(where)
        for name in re.findall(r"^\s*(\S+) => not found", text, re.MULTILINE):
            if not NOT_PACKED.match(name):
                fail(f"{path} needs {name}, which is not found here")
    return found


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source.resolve(), target)


def copy_tree(source, target):
    if source.exists():
        shutil.copytree(source, target, symlinks=False, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("*.a", "*.la", "*.mod"))


def take_prefix(prefix, stage):
    """An Open MPI in a folder of its own, which finds itself by OPAL_PREFIX."""
    for name in ("orterun", "orted"):
        copy(prefix / "bin" / name, stage / "mpi/bin" / name)
    for path in sorted((prefix / "lib").glob("*.so.*")):
        # One file of each: the name that programs ask for has one number.
        if re.search(r"\.so\.\d+$", path.name):
            copy(path, stage / "mpi/lib" / path.name)
    for folder in ("lib/openmpi", "lib/pmix", "share", "etc"):
        copy_tree(prefix / folder, stage / "mpi" / folder)
    # It may have been moved since it was installed.
    info = output_of(prefix / "bin/ompi_info", "--parsable", "--all", OPAL_PREFIX=str(prefix),
                     LD_LIBRARY_PATH=f"{prefix}/lib")
    return info, {"OPAL_PREFIX": "@ROOT@/mpi", "PMIX_INSTALL_PREFIX": "@ROOT@/mpi"}


def take_installed(stage):
    """The distribution's Open MPI, whose folders lie apart; Debian's tells where by ompi_info."""
    info = output_of("ompi_info", "--parsable", "--all")
    where = dict(re.findall(r"^path:(\w+):(.*)$", info, re.MULTILINE))
    for name in ("orterun", "orted"):
        copy(pathlib.Path(where["bindir"]) / name, stage / "mpi/bin" / name)
    folders = {"OPAL_PKGLIBDIR": ("pkglibdir", "lib/openmpi"), "OPAL_PKGDATADIR": ("pkgdatadir", "share/openmpi"),
               "OPAL_SYSCONFDIR": ("sysconfdir", "etc")}
    environment = {"OPAL_PREFIX": "@ROOT@/mpi", "OMPI_MCA_mca_base_component_path": "@ROOT@/mpi/lib/openmpi"}
    for variable, (key, folder) in folders.items():
        copy_tree(pathlib.Path(where[key]), stage / "mpi" / folder)
        environment[variable] = f"@ROOT@/mpi/{folder}"
    return info, environment


def take_mpi(prefix, stage):
    """Returns (about, environment)."""
    info, environment = take_prefix(prefix, stage) if prefix else take_installed(stage)
    link = stage / "mpi/bin/mpirun"
    link.symlink_to("orterun")
    version = re.search(r"^ompi:version:full:(.*)$", info, re.MULTILINE)
    cuda = "mpi_built_with_cuda_support:value:true" in info
    about = {"mpi": f"Open MPI {version.group(1) if version else '(version not told)'}",
             "mpi_is_cuda_aware": "yes" if cuda else "no"}
    # No launcher but mpirun itself: it looks for ssh where it is not told.
    environment |= {"OMPI_MCA_plm": "isolated", "PMIX_MCA_gds": "hash"}
    return about, environment


def take_ucx(stage, loaded):
    """UCX's modules, which it loads by itself, from beside its libraries."""
    core = loaded.get("libucp.so.0")
    if core is None:
        return {"ucx": "none"}, {}
    modules = sorted((core.parent / "ucx").glob("*.so*"))
    for module in modules:
        copy(module, stage / "lib/ucx" / module.name)
    for name, path in libraries_of(modules).items():
        copy(path, stage / "lib" / name)
    cuda = any("cuda" in module.name for module in modules)
    version = re.search(r"(\d+\.\d+\.\d+)", output_of("ucx_info", "-v", check=False)) if shutil.which("ucx_info") else None
    about = {"ucx": version.group(1) if version else core.resolve().name, "ucx_has_cuda": "yes" if cuda else "no"}
    return about, {"UCX_MODULE_DIR": "@ROOT@/lib/ucx"}


def is_elf(path):
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def slim(stage):
    """Strips, and makes equal files one."""
    seen = {}
    for path in sorted(p for p in stage.rglob("*") if p.is_file() and not p.is_symlink()):
        if is_elf(path):
            path.chmod(path.stat().st_mode | 0o200)
            subprocess.run(["strip", "--strip-unneeded", path], check=False, stderr=subprocess.DEVNULL)
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest in seen:
            path.unlink()
            os.link(seen[digest], path)
        else:
            seen[digest] = path


def of_nobody(member):
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def pack(stage, output, preset):
    """Programs last and in a row: they share most of their code, which the dictionary reaches."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": preset}]
    if preset == 9:
        filters[-1]["dict_size"] = 96 << 20
    paths = sorted(p for p in stage.rglob("*") if p.is_file() or p.is_symlink())
    paths.sort(key=lambda p: p.relative_to(stage).parts[0] == "bin")
    partial = output.with_name(output.name + ".partial")
    with lzma.open(partial, "wb", format=lzma.FORMAT_XZ, filters=filters) as packed, \
            tarfile.open(fileobj=packed, mode="w|") as tar:
        for path in paths:
            tar.add(path, arcname=str(path.relative_to(stage)), recursive=False, filter=of_nobody)
    partial.rename(output)


def tracked_bytes():
    names = output_of("git", "-C", REPOSITORY, "ls-files", "-z", check=False).split("\0")
    return sum(os.lstat(REPOSITORY / name).st_size for name in names if name and os.path.lexists(REPOSITORY / name))


def stage_all(arguments, build, stage):
    """Fills the folder; returns what it is made of."""
    programs = programs_of(build, arguments.emulated)
    for name, path in programs.items():
        copy(path, stage / "bin" / name)
    prefix = pathlib.Path(arguments.mpi).resolve() if arguments.mpi else None
    about_mpi, environment = take_mpi(prefix, stage)
    loaded_by = [*programs.values(), *(p for p in (stage / "mpi").rglob("*") if p.is_file() and is_elf(p))]
    loaded = libraries_of(loaded_by, [stage / "mpi/lib"])
    for name, path in loaded.items():
        if not (stage / "mpi/lib" / name).exists():
            copy(path, stage / "lib" / name)
    about_ucx, ucx_environment = take_ucx(stage, loaded)
    commit = output_of("git", "-C", REPOSITORY, "describe", "--always", "--dirty", "--abbrev=12", check=False).strip()
    about = {"commit": commit or "unknown", "device": "emulated" if arguments.emulated else "gpu",
             **about_mpi, **about_ucx}
    for name, values in (("about", about), ("environment", environment | ucx_environment)):
        (stage / name).write_text("".join(f"{key}={value}\n" for key, value in values.items()), encoding="utf-8")
    return about


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default=str(REPOSITORY / "build/gpu-bundle.tar.xz"))
    parser.add_argument("--build", default=str(REPOSITORY / "build/cuda"))
    parser.add_argument("--mpi")
    parser.add_argument("--preset", type=int, choices=range(10), default=9)
    parser.add_argument("--emulated", action="store_true")
    arguments = parser.parse_args()
    build, output = pathlib.Path(arguments.build).resolve(), pathlib.Path(arguments.file).resolve()
    if arguments.mpi and not (pathlib.Path(arguments.mpi) / "bin/orterun").exists():
        fail(f"no Open MPI in {arguments.mpi} (there is no bin/orterun)")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        stage = pathlib.Path(folder) / "stage"
        stage.mkdir()
        about = stage_all(arguments, build, stage)
        slim(stage)
        pack(stage, output, arguments.preset)
    size, tracked = output.stat().st_size, tracked_bytes()
    print("\n".join(f"{key} {value}" for key, value in about.items()))
    print(f"{output}: {size / 2**20:.1f} MiB, with the {tracked / 2**20:.1f} MiB of tracked files "
          f"{(size + tracked) / 2**20:.1f} of at most {MOST_BYTES / 2**20:.0f} MiB")
    return 0 if arguments.emulated or size + tracked <= MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
