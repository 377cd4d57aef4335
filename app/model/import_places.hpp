#pragma once
// Where the slabs of a model file may be in a Hugging Face folder.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "app/model/architectures.hpp"
#include "app/model/families.hpp"
#include "app/model/tensors.hpp"

namespace atl {

/// Which elements of a stored matrix make a slab, row after row.
struct Picking {
  std::int64_t cols = 0;           ///< of the stored matrix
  std::vector<std::int64_t> rows;  ///< its rows, in the slab's order; empty: all as they are
  bool turned = false;             ///< `rows` are its columns, and each becomes a row
  float factor = 1;                ///< float32 is multiplied by it

  /// The slab of the stored matrix `bytes`, in `buffer` where it is not that.
  std::span<const std::byte> apply(std::span<const std::byte> bytes, DType dtype,
                                   std::vector<std::byte>& buffer) const;
};

/// Where a slab of a model file may be in a Hugging Face folder.
struct Place {
  std::string name;
  std::vector<std::int64_t> shape;  ///< of the whole tensor
  std::int64_t part = 0;  ///< the tensor is cut into `num_parts` along its first dimensions
  std::int64_t num_parts = 1;
  Picking picking;
};

/// How the tensors of a folder are to be read.
struct FolderForm {
  std::string name;  ///< of the class
  /// All places where a slab may be, the usual ones first.
  std::function<std::vector<Place>(const TensorInfo& target, std::int64_t slab)> places_of;
  std::string left_out;  ///< tensors whose names contain it are not needed; empty: none
};

FolderForm form_of(const Architecture& architecture);
FolderForm form_of(const Family& family, const FamilyModel& model);

}  // namespace atl
