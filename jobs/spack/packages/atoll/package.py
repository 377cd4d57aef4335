# Atoll for Spack: `spack repo add jobs/spack`, then `spack dev-build atoll@0.1.0` in a checkout (with GPUs
# `atoll@0.1.0 +cuda cuda_arch=90`).
from spack.package import *


class Atoll(CMakePackage, CudaPackage):
    """Batch inference of Mixture-of-Experts transformers as a plain MPI job."""

    license("Apache-2.0")

    # Sources are a checkout's: `spack dev-build --source-path CHECKOUT atoll@0.1.0`.
    version("0.1.0")

    variant("tests", default=False, description="Build the tests, which need GoogleTest")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("ninja", type="build")
    depends_on("python@3.9:", type="run")
    depends_on("mpi@3:")
    depends_on("hdf5@1.10.8: +mpi")
    depends_on("onednn@2.6:2 cpu_runtime=omp")
    depends_on("cli11@2.1:")
    depends_on("fmt@9:10")  # fmt::join is in another header from 11 on
    depends_on("nlohmann-json@3.11:")
    depends_on("xxhash")
    depends_on("pcre2@10.40: +jit")
    depends_on("utf8proc")
    depends_on("googletest", when="+tests", type=("build", "test"))
    depends_on("cuda@12:", when="+cuda")
    conflicts("cuda_arch=none", when="+cuda", msg="name the GPUs: cuda_arch=90 for H100 and H200")
    conflicts("%gcc@:11", msg="Atoll is C++20: GCC 12 or later")

    generator("ninja")

    def cmake_args(self):
        args = [
            self.define_from_variant("ATOLL_CUDA", "cuda"),
            self.define_from_variant("ATOLL_BUILD_TESTS", "tests"),
            self.define("ATOLL_BUILD_PERF", False),
        ]
        if self.spec.satisfies("+cuda"):
            # 90a: the kernels use what H100's own instructions offer.
            gpus = ["90a" if gpu == "90" else gpu for gpu in self.spec.variants["cuda_arch"].value]
            args.append(self.define("ATOLL_CUDA_ARCHITECTURES", ";".join(gpus)))
        return args

    def setup_run_environment(self, env):
        env.set("ATOLL", self.prefix.bin.atoll)
        env.set("ATOLL_HOME", self.prefix.share.atoll)
