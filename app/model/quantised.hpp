#pragma once
// Weights that a folder holds in few bits, with scales, as float32.

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "io/safetensors.hpp"

namespace atl {

/// What a folder's quantization_config says; `method` is empty where there is none.
struct Quantisation {
  std::string method;
  std::int64_t block_rows = 0;  ///< of "fp8": a scale for each block
  std::int64_t block_cols = 0;
};
/// Takes quantization_config out of a configuration. Throws Error naming what is not supported.
Quantisation take_quantisation(nlohmann::json& hf);

enum class Code : std::uint8_t {
  none,   ///< numbers as they are
  fp8,    ///< E4M3, times the float32 or E8M0 scale of their block
  mxfp4,  ///< 32 E2M1 numbers in 16 bytes, the low half first, times 2^(scale - 127)
  int4,   ///< eight numbers + 8 in 32 bits, the lowest first, times the scale of their group
};

/// A stored matrix [rows, cols] of coded numbers.
struct CodedMatrix {
  Code code = Code::none;
  io::StoredTensor numbers;  ///< or the part of it that is the matrix
  io::StoredTensor scales;   ///< likewise
  std::string name;          ///< of the numbers
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t block_rows = 1;  ///< of what has one scale
  std::int64_t block_cols = 1;
};

/// The part `part` of `num_parts` of the matrix that is called `name` where it is not coded, if the
/// folder has it in one of the codes; else of code none. `names` gets those of the tensors. Throws
/// Error where numbers are there and scales are not, or where the two do not go together.
CodedMatrix find_coded(const io::Safetensors& stored, const Quantisation& quantisation,
                       const std::string& name, std::int64_t rows, std::int64_t cols,
                       std::int64_t part, std::int64_t num_parts, std::vector<std::string>& names);

/// values [rows * cols] = the numbers times their scales, rounded to float32 once.
void read_coded(const io::Safetensors& stored, const CodedMatrix& matrix,
                std::vector<float>& values);

/// An E4M3 number ("fn": no infinities, NaN by 0x7f and 0xff).
float fp8_e4m3(std::uint8_t bits);

}  // namespace atl
