#include "app/run/isa.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

namespace atl {

using compute::CpuIsa;

CpuIsa agreed_isa(std::optional<CpuIsa> wanted, const std::string& recorded,
                  const std::vector<CpuIsa>& able) {
  const auto narrowest = std::min_element(able.begin(), able.end());
  const auto rank = narrowest - able.begin();
  if (wanted) {
    require(*wanted <= *narrowest,
            "--isa {}: the CPU of rank {} has only {}; give that, or auto, or use other nodes",
            name_of(*wanted), rank, name_of(*narrowest));
    return *wanted;
  }
  if (recorded.empty()) return *narrowest;
  const auto isa = compute::cpu_isa_named(recorded);
  require(
      isa && *isa <= *narrowest,
      "cannot resume: the interrupted run computed with {}, whose bits the CPU of rank {} cannot "
      "give (it has {}); resume on nodes that have it, or remove journal and checkpoints to "
      "start anew",
      recorded, rank, name_of(*narrowest));
  return *isa;
}

namespace {
constexpr const char* without_amx =
    "AMX is left out (oneDNN has no AMX kernels here, or they do not give a row of this model's "
    "matrices the same bits alone and among others)";
}  // namespace

CpuIsa use_agreed_isa(const comm::Communicator& world, std::optional<CpuIsa> wanted,
                      const std::string& recorded, const std::function<CpuIsa()>& mine) {
  CpuIsa isa = CpuIsa::avx2;
  const std::string of_first = world.broadcast(recorded, 0);
  const std::string least = wanted ? name_of(*wanted) : of_first;
  const bool tries_amx = least.empty() || least == name_of(CpuIsa::avx512_amx);
  world.agree([&] {
    isa = tries_amx ? mine() : compute::widest_cpu_isa();
    if (isa == compute::widest_cpu_isa()) return;
    // The CPU has more than this model may use.
    require(!wanted || *wanted <= isa, "--isa {}: {}; give {}, or auto", name_of(*wanted),
            without_amx, name_of(isa));
    if (world.rank() == 0) fmt::print(stderr, "computing with {}: {}\n", name_of(isa), without_amx);
  });
  const auto able = world.allgather(isa);
  world.agree([&] {
    isa = agreed_isa(wanted, of_first, able);
    compute::use_cpu_isa(isa);
  });
  return isa;
}

}  // namespace atl
