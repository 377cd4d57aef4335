#pragma once
// What decides the bytes of a run's results: two runs with equal identities write equal results, on
// any number of ranks. Results and checkpoints carry it, so that no run resumes another's.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/config.hpp"
#include "compute/types.hpp"
#include "io/requests.hpp"

namespace atl {

/// Where the arithmetic runs. The same operations have other bits with other instruction sets of a
/// CPU, and on other kinds of GPUs.
struct Arithmetic {
  std::string backend;  ///< "cpu" or "cuda"
  std::string isa;      ///< on a CPU: its instruction sets, as name_of() has them; else empty
  std::string devices;  ///< the kinds of GPUs, by name, with commas; empty on a CPU
};

/// Name and value of all that changes results: model, input, mode, max-tokens, kv-tokens, seed
/// (where a request draws from it), dtype, arithmetic, backend, and isa or devices. An object of
/// strings.
nlohmann::ordered_json identity_of(const RunOptions& options, std::uint64_t model, DType dtype,
                                   const Arithmetic& arithmetic,
                                   const std::vector<io::Request>& requests);

/// The instruction sets of the identity of an earlier run; empty where it has none.
std::string isa_of(const nlohmann::ordered_json& identity);

/// What differs, for a message: "max-tokens was 64 and is 32"; empty when nothing does.
std::string difference(const nlohmann::ordered_json& was, const nlohmann::ordered_json& is);

}  // namespace atl
