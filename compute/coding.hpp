#pragma once
// Matrices that are kept in few bits: codes with scales, as models are published in them.

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace atl {

enum class Code : std::uint8_t {
  none,   ///< numbers as they are
  fp8,    ///< a byte each: E4M3 without infinities
  mxfp4,  ///< E2M1, two in a byte, the low half first; scales are exponents, 2^(byte - 127)
  int4,   ///< number + 8, likewise two in a byte; rows are whole words of 32 bits
};

constexpr std::string_view name_of(Code code) {
  switch (code) {
    case Code::fp8:
      return "fp8";
    case Code::mxfp4:
      return "mxfp4";
    case Code::int4:
      return "int4";
    case Code::none:
      break;
  }
  return "none";
}

/// How the rows of a matrix are kept: codes, and for each `group` of a row's columns (the last one
/// may be shorter) a scale. An element is its number times its scale, rounded to float32 and then
/// to the type that the matrix would have without codes.
struct Coding {
  Code code = Code::none;
  int group = 0;

  bool used() const { return code != Code::none; }
  std::int64_t groups(std::int64_t cols) const { return (cols + group - 1) / group; }
  std::int64_t row_bytes(std::int64_t cols) const {
    if (code == Code::fp8) return cols;
    return code == Code::mxfp4 ? (cols + 1) / 2 : (cols + 7) / 8 * 4;
  }
  std::int64_t scale_bytes() const {
    return code == Code::mxfp4 ? 1 : 4;
  }  ///< of one, or a float32
  auto operator<=>(const Coding&) const = default;
};

namespace compute {

/// An E4M3 number ("fn": no infinities, NaN by 0x7f and 0xff).
float fp8_e4m3(std::uint8_t bits);

/// Number `col` of the row whose codes begin at `row`.
float number_at(Code code, const std::byte* row, std::int64_t col);

/// Scale `group` of the row whose scales begin at `scales`, which need not be aligned.
float scale_at(Code code, const std::byte* scales, std::int64_t group);

}  // namespace compute
}  // namespace atl
