#pragma once
// What decides the bytes of a run's results: two runs with equal identities write equal results, on
// any number of ranks. Results and checkpoints carry it, so that no run resumes another's.

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

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

/// What the identity says of the requests.
struct InputFacts {
  std::string text;                  ///< a checksum, and of how many requests where not of all
  bool draws_from_job_seed = false;  ///< one of them draws tokens and names no seed
};

/// What a request says, for a checksum. Of what was understood, not of the file's bytes: those
/// cannot be read twice from a pipe.
std::string identity_text(const io::Request& request);
/// Whether the job's seed decides its tokens.
bool draws_without_seed(const io::Request& request);

/// A run's own identity, as far as its requests have been read; to compare it with what an earlier
/// run `recorded` of itself (null: nothing), of as many requests as that one had read.
using IdentityLike = std::function<nlohmann::ordered_json(const nlohmann::ordered_json& recorded)>;

/// Name and value of all that changes results: model, input, mode, max-tokens, kv-tokens, seed
/// (where a request draws from it), dtype, arithmetic, backend, and isa or devices. With --control
/// results name their weights, so that the model is left out, and --update is in. An object of
/// strings.
nlohmann::ordered_json identity_of(const RunOptions& options, std::uint64_t model, DType dtype,
                                   const Arithmetic& arithmetic, const InputFacts& input);

/// The instruction sets of the identity of an earlier run; empty where it has none.
std::string isa_of(const nlohmann::ordered_json& identity);

/// What differs, for a message: "max-tokens was 64 and is 32"; empty when nothing does.
std::string difference(const nlohmann::ordered_json& was, const nlohmann::ordered_json& is);

}  // namespace atl
