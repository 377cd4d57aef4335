// Reading experts' choices, from HDF5 and from .npy.

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "compute/error.hpp"
#include "io/npy.hpp"
#include "io/routing_file.hpp"
#include "io/routing_paths.hpp"
#include "io/row_datasets.hpp"

namespace atl::io {

struct RoutingReader::Impl {
  std::string path;
  std::string what;
  RoutingLayout layout;
  std::vector<std::int64_t> num_rows;
  std::vector<RoutingSums> sums;
  std::unique_ptr<NpyIntegers> trace;
  Handle file, experts, weights;

  void open_trace();
  void open_hdf5();
  void read_sums();
};

void RoutingReader::Impl::open_trace() {
  trace = std::make_unique<NpyIntegers>(path);
  const std::vector<std::int64_t>& shape = trace->shape();
  require(shape.size() == 3 && shape[1] <= 65536 && shape[2] <= 65536,
          "{}: an array of shape [{}], must be [tokens, layers, k]", what, fmt::join(shape, ", "));
  layout.top_k = static_cast<int>(shape[2]);
  layout.layers.resize(static_cast<std::size_t>(shape[1]));
  std::iota(layout.layers.begin(), layout.layers.end(), 0);
  layout.first_row = {0, shape[0]};
  num_rows = {shape[0]};
}

void RoutingReader::Impl::open_hdf5() {
  const std::string wanted =
      "a file made by atoll run --record-routing, or a .npy of shape [tokens, layers, k]";
  check_is_hdf5(path, wanted);
  file = open_for_reading(path);
  const Handle root = checked(H5Gopen2(file.get(), "/", H5P_DEFAULT), what);
  const std::string format =
      read_text_attribute(root.get(), "format", what + ": attribute \"format\" of /");
  require(format == routing_format, "{}: its format is \"{}\", must be \"{}\"; give {}", what,
          format, routing_format, wanted);
  const auto number = [&](const char* name) {
    const auto values = read_u64_attribute(root.get(), name, what);
    return values.size() == 1 ? values[0] : 0;
  };
  require(number("format_version") == routing_format_version,
          "{}: its format version is {} and this program reads {}", what, number("format_version"),
          routing_format_version);
  layout.model = read_text_attribute(root.get(), "model", what);
  const std::uint64_t num_experts = number("num_experts");
  require(num_experts >= 1 && num_experts <= 65536, "{}: {} experts; the file is damaged", what,
          num_experts);
  layout.num_experts = static_cast<int>(num_experts);
  RequestIndex index = read_request_index(file.get(), what);
  layout.requests = std::move(index.ids);
  layout.first_row = std::move(index.first_row);
  num_rows = std::move(index.num_rows);
  std::vector<std::int64_t> extents{layout.total_rows(), -1, -1};
  experts = open_rows(file.get(), routing_experts_path, Stored::anyhow, extents, what);
  require(extents[1] <= 65536 && extents[2] <= 65536, "{}: rows of {} x {} choices", what,
          extents[1], extents[2]);
  if (H5Lexists(file.get(), routing_weights_path, H5P_DEFAULT) > 0) {
    weights = open_rows(file.get(), routing_weights_path, Stored::anyhow, extents, what);
  }
  layout.top_k = static_cast<int>(extents[2]);
  std::vector<std::int64_t> num_layers{extents[1]};
  const Handle layers =
      open_rows(file.get(), routing_layers_path, Stored::anyhow, num_layers, what);
  layout.layers.resize(static_cast<std::size_t>(num_layers[0]));
  read_rows(layers.get(), H5T_NATIVE_INT, 0, num_layers[0], layout.layers.data(), what);
  read_sums();
}

/// Made choices need none.
void RoutingReader::Impl::read_sums() {
  if (H5Lexists(file.get(), routing_sums_path, H5P_DEFAULT) <= 0) return;
  std::vector<std::int64_t> extents{static_cast<std::int64_t>(layout.requests.size()), 2};
  const Handle data = open_rows(file.get(), routing_sums_path, Stored::anyhow, extents, what);
  std::vector<std::uint64_t> values(2 * layout.requests.size());
  read_rows(data.get(), H5T_NATIVE_UINT64, 0, extents[0], values.data(), what);
  for (std::size_t r = 0; r < layout.requests.size(); ++r) {
    sums.push_back({values[2 * r], values[2 * r + 1]});
  }
}

RoutingReader::RoutingReader(const std::string& path) : impl_(std::make_unique<Impl>()) {
  prepare_hdf5();
  impl_->path = path;
  impl_->what = "cannot read " + path;
  if (is_npy(path)) {
    impl_->open_trace();
  } else {
    impl_->open_hdf5();
  }
}

RoutingReader::~RoutingReader() = default;

const std::string& RoutingReader::path() const {
  return impl_->path;
}
const RoutingLayout& RoutingReader::layout() const {
  return impl_->layout;
}
bool RoutingReader::is_trace() const {
  return impl_->trace != nullptr;
}
bool RoutingReader::has_weights() const {
  return impl_->weights.valid();
}
std::int64_t RoutingReader::num_rows(std::size_t request) const {
  return impl_->num_rows[request];
}
std::optional<RoutingSums> RoutingReader::sums(std::size_t request) const {
  if (impl_->sums.empty()) return std::nullopt;
  return impl_->sums[request];
}

void RoutingReader::read(std::size_t request, std::int64_t position, std::int64_t rows,
                         std::span<std::int32_t> experts, std::span<float> weights) {
  const RoutingLayout& layout = impl_->layout;
  const auto choices = static_cast<std::size_t>(rows * layout.row_choices());
  require(position >= 0 && rows >= 0 && position + rows <= num_rows(request) &&
              experts.size() == choices && (weights.empty() || weights.size() == choices),
          "{}: internal: {} rows from position {} asked for", impl_->what, rows, position);
  const std::int64_t first = layout.first_row[request] + position;
  if (is_trace()) return impl_->trace->read(first * layout.row_choices(), experts);
  read_rows(impl_->experts.get(), H5T_NATIVE_INT32, first, rows, experts.data(), impl_->what);
  if (weights.empty()) return;
  read_rows(impl_->weights.get(), H5T_NATIVE_FLOAT, first, rows, weights.data(), impl_->what);
}

}  // namespace atl::io
