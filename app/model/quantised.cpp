#include "app/model/quantised.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "compute/convert.hpp"
#include "compute/error.hpp"
#include "io/json_shown.hpp"

namespace atl {
namespace {

using Json = nlohmann::json;
using io::shown;

constexpr std::int64_t mxfp4_group = 32;

std::int64_t blocks(std::int64_t count, std::int64_t size) {
  return (count + size - 1) / size;
}

void take_fp8(const Json& json, Quantisation& result) {
  const Json& size = json.value("weight_block_size", Json());
  const bool fits = size.is_array() && size.size() == 2 && size[0].is_number_unsigned() &&
                    size[1].is_number_unsigned() && size[0] > 0 && size[1] > 0 &&
                    size[0] <= 65536 && size[1] <= 65536;
  require(fits,
          "key \"weight_block_size\" of quantization_config is {}; fp8 is supported with scales of "
          "blocks, such as [128, 128]",
          shown(size));
  result.block_rows = size[0].get<std::int64_t>();
  result.block_cols = size[1].get<std::int64_t>();
}

/// compressed-tensors: symmetric integers of four bits in groups.
void take_int4(const Json& json, Quantisation& result) {
  require(json.value("format", Json()) == "pack-quantized",
          "key \"format\" of quantization_config is {}; of compressed-tensors pack-quantized is "
          "supported",
          shown(json.value("format", Json())));
  const Json groups = json.value("config_groups", Json::object());
  require(groups.is_object(),
          "key \"config_groups\" of quantization_config is {}, must be an object", shown(groups));
  for (const auto& [name, group] : groups.items()) {
    const Json weights = group.is_object() ? group.value("weights", Json()) : Json();
    const bool fits = weights.is_object() && weights.value("num_bits", Json()) == 4 &&
                      weights.value("type", Json()) == "int" &&
                      weights.value("symmetric", Json()) == true &&
                      weights.value("strategy", Json()) == "group";
    require(fits,
            "{} of quantization_config has weights {}; symmetric int of 4 bits in groups is "
            "supported",
            name, shown(weights));
    const Json size = weights.value("group_size", Json());
    if (size.is_number_unsigned() && size > 0 && size <= 65536) {
      result.block_cols = size.get<std::int64_t>();
    }
  }
}

const io::StoredTensor* tensor_of(const io::Safetensors& stored, const std::string& name) {
  const auto found = stored.tensors().find(name);
  return found == stored.tensors().end() ? nullptr : &found->second;
}

void require_shape(const io::Safetensors& stored, const std::string& name,
                   const io::StoredTensor& tensor, const std::vector<std::int64_t>& shape) {
  require(tensor.shape == shape,
          "tensor {} in {} has shape [{}], its weight and quantization_config make it [{}]", name,
          stored.file_of(tensor), fmt::join(tensor.shape, ", "), fmt::join(shape, ", "));
}

const io::StoredTensor& scales_of(const io::Safetensors& stored, const std::string& name,
                                  const std::string& scales) {
  const io::StoredTensor* tensor = tensor_of(stored, scales);
  require(tensor != nullptr, "tensor {} is missing, the scales of {}; the folder is incomplete",
          scales, name);
  return *tensor;
}

io::StoredTensor part_of(io::StoredTensor tensor, std::int64_t part, std::int64_t num_parts) {
  tensor.bytes /= num_parts;
  tensor.offset += part * tensor.bytes;
  return tensor;
}

bool is_fp8(const io::StoredTensor* tensor) {
  return tensor != nullptr && tensor->dtype_name == "F8_E4M3";
}

void find_fp8(const io::Safetensors& stored, const Quantisation& quantisation,
              const io::StoredTensor& numbers, CodedMatrix& found,
              std::vector<std::string>& names) {
  require(quantisation.block_rows > 0,
          "tensor {} in {}: its dtype is F8_E4M3, and config.json has no quantization_config with "
          "weight_block_size",
          found.name, stored.file_of(numbers));
  require_shape(stored, found.name, numbers, {found.rows, found.cols});
  found.code = Code::fp8;
  found.block_rows = quantisation.block_rows;
  found.block_cols = quantisation.block_cols;
  found.numbers = numbers;
  const std::string scales = found.name + "_scale_inv";
  found.scales = scales_of(stored, found.name, scales);
  require(found.scales.dtype == DType::float32 || found.scales.dtype == DType::bfloat16 ||
              found.scales.dtype_name == "F8_E8M0",
          "tensor {} in {}: its dtype is {}; scales in F32, BF16 or F8_E8M0 are supported", scales,
          stored.file_of(found.scales), found.scales.dtype_name);
  require_shape(stored, scales, found.scales,
                {blocks(found.rows, found.block_rows), blocks(found.cols, found.block_cols)});
  names = {found.name, scales};
}

void find_mxfp4(const io::Safetensors& stored, const io::StoredTensor& numbers,
                const std::string& name, std::int64_t part, std::int64_t num_parts,
                CodedMatrix& found, std::vector<std::string>& names) {
  const std::string scales = name + "_scales";
  found.code = Code::mxfp4;
  found.block_cols = mxfp4_group;
  const io::StoredTensor& all = scales_of(stored, found.name, scales);
  require(found.cols % mxfp4_group == 0 && numbers.dtype_name == "U8" && all.dtype_name == "U8",
          "tensor {} in {} has dtype {} and rows of {} numbers; MXFP4 has U8 and multiples of {}",
          found.name, stored.file_of(numbers), numbers.dtype_name, found.cols, mxfp4_group);
  const std::int64_t groups = found.cols / mxfp4_group;
  require_shape(stored, found.name, numbers, {num_parts, found.rows, groups, mxfp4_group / 2});
  require_shape(stored, scales, all, {num_parts, found.rows, groups});
  found.numbers = part_of(numbers, part, num_parts);
  found.scales = part_of(all, part, num_parts);
  names = {found.name, scales};
}

void find_int4(const io::Safetensors& stored, const io::StoredTensor& numbers,
               const std::string& base, CodedMatrix& found, std::vector<std::string>& names) {
  const std::string scales = base + "weight_scale";
  found.code = Code::int4;
  found.numbers = numbers;
  found.scales = scales_of(stored, found.name, scales);
  require(numbers.dtype_name == "I32" && found.scales.dtype.has_value(),
          "tensors {} and {} have dtypes {} and {}; I32, and BF16, F16 or F32 are supported",
          found.name, scales, numbers.dtype_name, found.scales.dtype_name);
  require_shape(stored, found.name, numbers, {found.rows, blocks(found.cols, 8)});
  const auto& shape = found.scales.shape;
  require(shape.size() == 2 && shape[0] == found.rows && shape[1] > 0 && found.cols % shape[1] == 0,
          "tensor {} in {} has shape [{}], which are no groups of [{}, {}]", scales,
          stored.file_of(found.scales), fmt::join(shape, ", "), found.rows, found.cols);
  found.block_cols = found.cols / shape[1];
  names = {found.name, scales, base + "weight_shape"};
}

/// Scales as float32.
std::vector<float> read_scales(const io::Safetensors& stored, const io::StoredTensor& scales) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(scales.bytes));
  stored.read(scales, bytes);
  if (scales.dtype) {
    std::vector<float> values(bytes.size() / size_of(*scales.dtype));
    compute::to_float(bytes.data(), *scales.dtype, values);
    return values;
  }
  std::vector<float> values;
  for (const std::byte exponent : bytes) {
    values.push_back(std::ldexp(1.0F, static_cast<int>(exponent) - 127));
  }
  return values;
}

}  // namespace

Quantisation take_quantisation(Json& hf) {
  Quantisation result;
  if (!hf.contains("quantization_config") || hf["quantization_config"].is_null()) return result;
  const Json json = hf["quantization_config"];
  hf.erase("quantization_config");
  require(json.is_object() && json.value("quant_method", Json()).is_string(),
          "key \"quantization_config\" is {}, must be an object with \"quant_method\"",
          shown(json));
  result.method = json["quant_method"].get<std::string>();
  if (result.method == "fp8") {
    take_fp8(json, result);
  } else if (result.method == "compressed-tensors") {
    take_int4(json, result);
  } else {
    require(result.method == "mxfp4",
            "key \"quant_method\" of quantization_config is {}, which is not supported; fp8 with "
            "scales of blocks, mxfp4, and compressed-tensors of 4 bits are",
            result.method);
    result.block_cols = mxfp4_group;
  }
  return result;
}

CodedMatrix find_coded(const io::Safetensors& stored, const Quantisation& quantisation,
                       const std::string& name, std::int64_t rows, std::int64_t cols,
                       std::int64_t part, std::int64_t num_parts, std::vector<std::string>& names) {
  CodedMatrix found;
  found.name = name;
  found.rows = rows;
  found.cols = cols;
  const io::StoredTensor* same = tensor_of(stored, name);
  if (is_fp8(same) && num_parts == 1) {
    find_fp8(stored, quantisation, *same, found, names);
    return found;
  }
  if (const io::StoredTensor* numbers = tensor_of(stored, name + "_blocks")) {
    found.name = name + "_blocks";
    find_mxfp4(stored, *numbers, name, part, num_parts, found, names);
    return found;
  }
  if (!name.ends_with(".weight") || num_parts != 1) return found;
  const std::string base = name.substr(0, name.size() - 6);
  if (const io::StoredTensor* numbers = tensor_of(stored, base + "weight_packed")) {
    found.name = base + "weight_packed";
    find_int4(stored, *numbers, base, found, names);
  }
  return found;
}

void read_coded(const io::Safetensors& stored, const CodedMatrix& matrix,
                std::vector<float>& values) {
  std::vector<std::byte> numbers(static_cast<std::size_t>(matrix.numbers.bytes));
  stored.read(matrix.numbers, numbers);
  const std::vector<float> scales = read_scales(stored, matrix.scales);
  values.resize(static_cast<std::size_t>(matrix.rows * matrix.cols));
  const std::int64_t row_bytes = matrix.numbers.bytes / matrix.rows;
  const std::int64_t scale_cols = blocks(matrix.cols, matrix.block_cols);
  for (std::int64_t r = 0; r < matrix.rows; ++r) {
    const std::byte* row = numbers.data() + r * row_bytes;
    const float* of_row = scales.data() + r / matrix.block_rows * scale_cols;
    float* to = values.data() + r * matrix.cols;
    for (std::int64_t block = 0; block < scale_cols; ++block) {
      const std::int64_t end = std::min(matrix.cols, (block + 1) * matrix.block_cols);
      for (std::int64_t c = block * matrix.block_cols; c < end; ++c) {
        to[c] = compute::number_at(matrix.code, row, c) * of_row[block];
      }
    }
  }
}

Coding coding_of(const CodedMatrix& matrix) {
  const std::int64_t all = (matrix.cols + 1) / 2 * 2;
  const std::int64_t group = std::min(matrix.block_cols, all);
  if (group % 2 != 0) return {};
  return {matrix.code, static_cast<int>(group)};
}

void read_codes(const io::Safetensors& stored, const CodedMatrix& matrix,
                std::vector<std::byte>& codes) {
  codes.resize(static_cast<std::size_t>(matrix.numbers.bytes));
  stored.read(matrix.numbers, codes);
}

void read_scales_of_rows(const io::Safetensors& stored, const CodedMatrix& matrix,
                         std::vector<std::byte>& scales) {
  if (matrix.code == Code::mxfp4) {  // exponents of rows as they are
    scales.resize(static_cast<std::size_t>(matrix.scales.bytes));
    return stored.read(matrix.scales, scales);
  }
  const std::vector<float> of_blocks = read_scales(stored, matrix.scales);
  const auto groups = static_cast<std::size_t>(blocks(matrix.cols, matrix.block_cols));
  scales.resize(static_cast<std::size_t>(matrix.rows) * groups * sizeof(float));
  for (std::int64_t r = 0; r < matrix.rows; ++r) {
    const auto row = static_cast<std::size_t>(r);
    std::memcpy(scales.data() + row * groups * sizeof(float),
                of_blocks.data() + static_cast<std::size_t>(r / matrix.block_rows) * groups,
                groups * sizeof(float));
  }
}

}  // namespace atl
