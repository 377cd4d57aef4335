#include "compute/cpu/isa.hpp"

#include <cpuid.h>
#include <strings.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <initializer_list>
#include <mutex>

#include "compute/error.hpp"

namespace atl::compute {

namespace {

constexpr std::array names = {"avx2", "avx512", "avx512_bf16", "avx512_amx"};

/// AMX needs the kernel's leave to have its registers saved.
bool has_amx() {
  constexpr unsigned bf16_and_tiles_and_int8 = (1U << 22) | (1U << 24) | (1U << 25);
  constexpr long ask_for_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long tile_data = 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 &&
         (d & bf16_and_tiles_and_int8) == bf16_and_tiles_and_int8 &&
         syscall(SYS_arch_prctl, ask_for_permission, tile_data) == 0;
}

CpuIsa widest_of_cpu() {
  require(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"),
          "cannot compute on this CPU (no AVX2 and FMA); use a machine with them");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  if (!avx512) return CpuIsa::avx2;
  if (!__builtin_cpu_supports("avx512bf16")) return CpuIsa::avx512;
  return has_amx() ? CpuIsa::avx512_amx : CpuIsa::avx512_bf16;
}

std::mutex mutex;
std::optional<CpuIsa> used;  // under mutex

void use_locked(CpuIsa isa) {
  require(!used || *used == isa, "cannot compute with {} (this process computes with {} already)",
          name_of(isa), name_of(*used));
  if (used) return;
  used = isa;
}

}  // namespace

const char* name_of(CpuIsa isa) {
  return names[static_cast<std::size_t>(isa)];
}

std::optional<CpuIsa> cpu_isa_named(std::string_view name) {
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (name == names[i]) return static_cast<CpuIsa>(i);
  }
  return std::nullopt;
}

CpuIsa most_under_limit(std::string_view limit) {
  const auto is_any = [limit](std::initializer_list<const char*> all) {
    return std::any_of(all.begin(), all.end(), [limit](std::string_view name) {
      return name.size() == limit.size() &&
             strncasecmp(name.data(), limit.data(), name.size()) == 0;
    });
  };
  if (is_any({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"})) return CpuIsa::avx2;
  if (is_any({"AVX512_CORE", "AVX512_CORE_VNNI"})) return CpuIsa::avx512;
  if (is_any({"AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"})) return CpuIsa::avx512_bf16;
  return CpuIsa::avx512_amx;
}

CpuIsa widest_cpu_isa() {
  static const CpuIsa of_cpu = widest_of_cpu();
  // oneDNN itself cannot be asked, since it takes no limit of ours after that.
  const char* limit = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (limit == nullptr) limit = std::getenv("DNNL_MAX_CPU_ISA");
  return limit == nullptr ? of_cpu : std::min(of_cpu, most_under_limit(limit));
}

void use_cpu_isa(CpuIsa isa) {
  require(isa <= widest_cpu_isa(), "cannot compute with {} (the widest here is {})", name_of(isa),
          name_of(widest_cpu_isa()));
  const std::lock_guard lock(mutex);
  use_locked(isa);
}

CpuIsa cpu_isa() {
  const std::lock_guard lock(mutex);
  if (!used) use_locked(widest_cpu_isa());
  return *used;
}

CpuIsa expected_cpu_isa() {
  const std::lock_guard lock(mutex);
  return used.value_or(widest_cpu_isa());
}

}  // namespace atl::compute
