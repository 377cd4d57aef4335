// Which instruction sets the ranks of a run agree on.

#include "app/run/isa.hpp"

#include <gtest/gtest.h>

#include "app/run/identity.hpp"

namespace atl {
namespace {

using compute::CpuIsa;
using compute::most_under_limit;

std::string refusal(std::optional<CpuIsa> wanted, const std::string& recorded,
                    const std::vector<CpuIsa>& able) {
  try {
    agreed_isa(wanted, recorded, able);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Isa, RanksTakeTheWidestThatAllHave) {
  const auto agreed = [](const std::vector<CpuIsa>& able) {
    return agreed_isa(std::nullopt, "", able);
  };
  EXPECT_EQ(agreed({CpuIsa::avx512_amx}), CpuIsa::avx512_amx);
  EXPECT_EQ(agreed({CpuIsa::avx512_bf16, CpuIsa::avx512_bf16}), CpuIsa::avx512_bf16);
  EXPECT_EQ(agreed({CpuIsa::avx512_bf16, CpuIsa::avx2, CpuIsa::avx512}), CpuIsa::avx2);
  EXPECT_EQ(agreed({CpuIsa::avx512, CpuIsa::avx512_amx}), CpuIsa::avx512);
}

TEST(Isa, AWishIsFollowedWhereAllCan) {
  const std::vector<CpuIsa> able = {CpuIsa::avx512_bf16, CpuIsa::avx512};
  EXPECT_EQ(agreed_isa(CpuIsa::avx2, "", able), CpuIsa::avx2);
  EXPECT_EQ(agreed_isa(CpuIsa::avx512, "", able), CpuIsa::avx512);
  const std::string why = refusal(CpuIsa::avx512_bf16, "", able);
  EXPECT_NE(why.find("rank 1"), std::string::npos) << why;
  EXPECT_NE(why.find("avx512;"), std::string::npos) << why;
}

TEST(Isa, AResumedRunComputesAsBeforeOrNotAtAll) {
  EXPECT_EQ(agreed_isa(std::nullopt, "avx2", {CpuIsa::avx512_bf16, CpuIsa::avx512}), CpuIsa::avx2);
  EXPECT_EQ(agreed_isa(std::nullopt, "avx512", {CpuIsa::avx512_amx}), CpuIsa::avx512);
  const std::string why = refusal(std::nullopt, "avx512_bf16", {CpuIsa::avx512_bf16, CpuIsa::avx2});
  EXPECT_NE(why.find("cannot resume"), std::string::npos) << why;
  EXPECT_NE(why.find("avx512_bf16"), std::string::npos) << why;
  EXPECT_NE(why.find("rank 1"), std::string::npos) << why;
  EXPECT_NE(refusal(std::nullopt, "something newer", {CpuIsa::avx512_amx}), "");
}

TEST(Isa, OneDnnsLimitsHaveTheirMeaning) {
  for (const char* name : {"SSE41", "AVX", "AVX2", "avx2", "AVX2_VNNI"})
    EXPECT_EQ(most_under_limit(name), CpuIsa::avx2) << name;
  for (const char* name : {"AVX512_CORE", "AVX512_CORE_VNNI", "avx512_core"})
    EXPECT_EQ(most_under_limit(name), CpuIsa::avx512) << name;
  for (const char* name : {"AVX512_CORE_BF16", "AVX512_CORE_FP16"})
    EXPECT_EQ(most_under_limit(name), CpuIsa::avx512_bf16) << name;
  for (const char* name : {"AVX512_CORE_AMX", "ALL", "DEFAULT", ""})
    EXPECT_EQ(most_under_limit(name), CpuIsa::avx512_amx) << name;
}

TEST(Isa, NamesAreRead) {
  for (const CpuIsa isa : {CpuIsa::avx2, CpuIsa::avx512, CpuIsa::avx512_bf16, CpuIsa::avx512_amx})
    EXPECT_EQ(compute::cpu_isa_named(name_of(isa)), isa);
  EXPECT_EQ(compute::cpu_isa_named("auto"), std::nullopt);
}

TEST(Isa, AProcessComputesWithOne) {
  compute::use_cpu_isa(CpuIsa::avx2);
  EXPECT_EQ(compute::cpu_isa(), CpuIsa::avx2);
  compute::use_cpu_isa(CpuIsa::avx2);
  if (compute::widest_cpu_isa() == CpuIsa::avx2) {
    EXPECT_THROW(compute::use_cpu_isa(CpuIsa::avx512), Error);  // this CPU has none
  } else {
    EXPECT_THROW(compute::use_cpu_isa(compute::widest_cpu_isa()), Error);  // too late
  }
}

TEST(Isa, TheIdentityHoldsIt) {
  const RunOptions options;
  const auto on_cpu = [&](const char* isa) {
    return identity_of(options, 1, DType::bfloat16, {"cpu", isa, ""}, {});
  };
  EXPECT_EQ(isa_of(on_cpu("avx512")), "avx512");
  EXPECT_EQ(difference(on_cpu("avx512"), on_cpu("avx2")), "isa was avx512 and is avx2");
  EXPECT_EQ(difference(on_cpu("avx2"), on_cpu("avx2")), "");
  auto before = on_cpu("avx2");
  before.erase("isa");  // a run of a version that did not note it
  EXPECT_EQ(isa_of(before), "");
  EXPECT_EQ(difference(before, on_cpu("avx2")), "isa was unknown and is avx2");
  const auto on_gpu = [&](const char* devices) {
    return identity_of(options, 1, DType::bfloat16, {"cuda", "", devices}, {});
  };
  EXPECT_EQ(isa_of(on_gpu("NVIDIA A")), "");
  EXPECT_EQ(difference(on_gpu("NVIDIA A"), on_gpu("NVIDIA A, NVIDIA B")),
            "devices was NVIDIA A and is NVIDIA A, NVIDIA B");
}

}  // namespace
}  // namespace atl
