#pragma once
// Weights that a folder holds in few bits, with scales, as float32.

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "compute/coding.hpp"
#include "io/safetensors.hpp"

namespace atl {

/// What a folder's quantization_config says; `method` is empty where there is none.
struct Quantisation {
  std::string method;
  std::int64_t block_rows = 0;  ///< of "fp8": a scale for each block
  std::int64_t block_cols = 0;  ///< of the others a group, where the configuration says it
};
/// Takes quantization_config out of a configuration. Throws Error naming what is not supported.
Quantisation take_quantisation(nlohmann::json& hf);

/// A stored matrix [rows, cols] of coded numbers, each row of which is as Coding says. Its scales
/// are float32 (E8M0 too, of fp8) or what the folder has, one for each block.
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

/// How a model file may keep the matrix; code none where it cannot: groups of an odd number of
/// columns.
Coding coding_of(const CodedMatrix& matrix);

/// codes [rows, coding.row_bytes(cols)], as they are.
void read_codes(const io::Safetensors& stored, const CodedMatrix& matrix,
                std::vector<std::byte>& codes);
/// scales [rows, coding.groups(cols)] of coding_of(), for each row.
void read_scales_of_rows(const io::Safetensors& stored, const CodedMatrix& matrix,
                         std::vector<std::byte>& scales);

}  // namespace atl
