#pragma once
// NumPy's .npy: one array of integers, of choices of experts, for example.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace atl::io {

/// A C-ordered array of 1 to 8-byte integers, read piece by piece.
class NpyIntegers {
 public:
  /// Throws Error: missing, no .npy, another element type, Fortran order, truncated.
  explicit NpyIntegers(const std::string& path);
  ~NpyIntegers();
  NpyIntegers(const NpyIntegers&) = delete;
  NpyIntegers& operator=(const NpyIntegers&) = delete;

  const std::vector<std::int64_t>& shape() const { return shape_; }
  /// Elements [first, first + out.size()) in memory order; what an int32 cannot hold becomes -1.
  void read(std::int64_t first, std::span<std::int32_t> out) const;

 private:
  std::string path_;
  int file_ = -1;
  std::vector<std::int64_t> shape_;
  bool is_signed_ = false;
  std::size_t element_bytes_ = 1;
  std::int64_t data_begin_ = 0;
};

}  // namespace atl::io
