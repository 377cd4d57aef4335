// Writing files of experts' choices.

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "compute/error.hpp"
#include "io/parallel_file.hpp"
#include "io/routing_file.hpp"
#include "io/routing_paths.hpp"
#include "io/row_datasets.hpp"

namespace atl::io {

static_assert(std::endian::native == std::endian::little, "rows are written as they are in memory");

struct RoutingSummer::Impl {
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> experts{XXH3_createState()};
  std::unique_ptr<XXH3_state_t, Free> weights{XXH3_createState()};
};

RoutingSummer::RoutingSummer() : impl_(std::make_unique<Impl>()) {
  XXH3_64bits_reset(impl_->experts.get());
  XXH3_64bits_reset(impl_->weights.get());
}
RoutingSummer::~RoutingSummer() = default;
RoutingSummer::RoutingSummer(RoutingSummer&&) noexcept = default;
RoutingSummer& RoutingSummer::operator=(RoutingSummer&&) noexcept = default;

void RoutingSummer::add(std::span<const std::uint16_t> experts, std::span<const float> weights) {
  XXH3_64bits_update(impl_->experts.get(), experts.data(), experts.size_bytes());
  XXH3_64bits_update(impl_->weights.get(), weights.data(), weights.size_bytes());
}
RoutingSums RoutingSummer::sums() const {
  return {XXH3_64bits_digest(impl_->experts.get()), XXH3_64bits_digest(impl_->weights.get())};
}

std::string unfinished_routing_file(const std::string& path) {
  return path + ".partial";
}

void create_routing_file(const std::string& path, const RoutingLayout& layout) {
  prepare_hdf5();
  const std::string what = "cannot write " + path;
  require(layout.total_rows() > 0 && layout.row_choices() > 0,
          "{}: no request is served, or the model has no MoE layer, so there are no choices", what);
  const std::string unfinished = unfinished_routing_file(path);
  ::unlink(unfinished.c_str());
  create_exclusively(path, unfinished);
  const Writers alone(single_process);
  Handle file = make_file(unfinished, alone, what);
  const Handle root = checked(H5Gopen2(file.get(), "/", H5P_DEFAULT), what);
  write_text_attribute(root.get(), "format", routing_format);
  for (const auto& [name, value] :
       {std::pair<const char*, std::uint64_t>{"format_version", routing_format_version},
        {"num_experts", static_cast<std::uint64_t>(layout.num_experts)}}) {
    make_u64_attribute(root.get(), name, 1);
    set_u64_attribute(root.get(), name, &value);
  }
  write_text_attribute(root.get(), "model", layout.model);
  make_request_index(file.get(), layout.requests, layout.first_row, /*fill=*/true, what);
  const hsize_t requests = layout.requests.size();
  make_rows(file.get(), num_rows_path, copy_of(H5T_STD_I64LE, what), {requests}, what);
  make_rows(file.get(), routing_sums_path, copy_of(H5T_STD_U64LE, what), {requests, 2}, what);
  const Handle layers = make_rows(file.get(), routing_layers_path, copy_of(H5T_STD_I32LE, what),
                                  {layout.layers.size()}, what);
  write_rows(layers.get(), H5T_NATIVE_INT, 0, static_cast<std::int64_t>(layout.layers.size()),
             layout.layers.data(), what);
  const std::vector<hsize_t> extents = {static_cast<hsize_t>(layout.total_rows()),
                                        layout.layers.size(), static_cast<hsize_t>(layout.top_k)};
  make_rows(file.get(), routing_experts_path, copy_of(H5T_STD_U16LE, what), extents, what);
  make_rows(file.get(), routing_weights_path, copy_of(H5T_IEEE_F32LE, what), extents, what);
  require(file.close(), "{}: is the disk full? (HDF5: {})", what, hdf5_error());
}

void reopen_routing_file(const std::string& path, const RoutingLayout& layout) {
  const std::string unfinished = unfinished_routing_file(path);
  std::error_code ignored;
  if (!std::filesystem::exists(unfinished, ignored)) {
    require(std::filesystem::exists(path, ignored),
            "cannot go on with {}: neither it nor {} is there, so the interrupted run recorded no "
            "routing there; leave --record-routing away, or start anew without --resume",
            path, unfinished);
    require(RoutingReader(path).layout() == layout,
            "cannot go on with {}: it is of another run; give the file of the interrupted run",
            path);
    if (std::rename(path.c_str(), unfinished.c_str()) != 0) {
      fail("cannot write {}: {}", unfinished, std::strerror(errno));
    }
  }
  require(RoutingReader(unfinished).layout() == layout,
          "cannot go on with {}: it is of another run; give the file of the interrupted run",
          unfinished);
}

void finish_routing_file(const std::string& path) {
  publish(unfinished_routing_file(path), path);
}

struct RoutingWriter::Impl {
  std::string path;
  RoutingLayout layout;
  int file = -1;
  std::int64_t experts_at = 0;  // offsets in the file
  std::int64_t weights_at = 0;
  std::int64_t num_rows_at = 0;
  std::int64_t sums_at = 0;
  std::int64_t bytes_written = 0;

  ~Impl() {
    if (file >= 0) ::close(file);
  }
  void put(const void* data, std::size_t bytes, std::int64_t offset);
  void get(void* data, std::size_t bytes, std::int64_t offset) const;
};

void RoutingWriter::Impl::put(const void* data, std::size_t bytes, std::int64_t offset) {
  const auto* from = static_cast<const char*>(data);
  bytes_written += static_cast<std::int64_t>(bytes);
  while (bytes > 0) {
    const ssize_t done = pwrite(file, from, bytes, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) fail("cannot write {}: {}", path, std::strerror(done < 0 ? errno : ENOSPC));
    from += done;
    bytes -= static_cast<std::size_t>(done);
    offset += done;
  }
}

void RoutingWriter::Impl::get(void* data, std::size_t bytes, std::int64_t offset) const {
  auto* to = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t done = pread(file, to, bytes, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0)
      fail("cannot read {} back: {}", path, done < 0 ? std::strerror(errno) : "it ends");
    to += done;
    bytes -= static_cast<std::size_t>(done);
    offset += done;
  }
}

RoutingWriter::RoutingWriter(const std::string& path, const RoutingLayout& layout)
    : impl_(std::make_unique<Impl>()) {
  prepare_hdf5();
  impl_->path = unfinished_routing_file(path);
  impl_->layout = layout;
  const std::string what = "cannot write " + impl_->path;
  {
    const Handle file = open_for_reading(impl_->path);
    const auto offset_of = [&](const char* name) {
      const Handle data = checked(H5Dopen2(file.get(), name, H5P_DEFAULT), what);
      const haddr_t offset = H5Dget_offset(data.get());
      require(offset != HADDR_UNDEF, "{}: {} is not stored contiguously", what, name);
      return static_cast<std::int64_t>(offset);
    };
    impl_->experts_at = offset_of(routing_experts_path);
    impl_->weights_at = offset_of(routing_weights_path);
    impl_->num_rows_at = offset_of(num_rows_path);
    impl_->sums_at = offset_of(routing_sums_path);
  }
  impl_->file = open(impl_->path.c_str(), O_RDWR | O_CLOEXEC);
  if (impl_->file < 0) {
    fail("{}: {}; all ranks must see the file", what, std::strerror(errno));
  }
}

RoutingWriter::~RoutingWriter() = default;

void RoutingWriter::write(std::size_t request, std::int64_t position,
                          std::span<const std::uint16_t> experts, std::span<const float> weights) {
  const std::int64_t choices = impl_->layout.row_choices();
  const std::int64_t first = impl_->layout.first_row[request] + position;
  require(first + static_cast<std::int64_t>(experts.size()) / choices <=
                  impl_->layout.first_row[request + 1] &&
              experts.size() == weights.size(),
          "internal: routing of request {} has no such positions", request);
  const auto at = [&](std::int64_t begin, std::size_t size) {
    return begin + first * choices * static_cast<std::int64_t>(size);
  };
  impl_->put(experts.data(), experts.size_bytes(), at(impl_->experts_at, sizeof(std::uint16_t)));
  impl_->put(weights.data(), weights.size_bytes(), at(impl_->weights_at, sizeof(float)));
}

void RoutingWriter::set_rows(std::size_t request, std::int64_t rows, const RoutingSums& sums) {
  const std::array<std::uint64_t, 2> both = {sums.experts, sums.weights};
  const auto number = static_cast<std::int64_t>(request);
  impl_->put(both.data(), sizeof both, impl_->sums_at + number * 16);
  impl_->put(&rows, sizeof rows, impl_->num_rows_at + number * 8);
}

std::int64_t RoutingWriter::num_rows(std::size_t request) const {
  std::int64_t rows = 0;
  impl_->get(&rows, sizeof rows, impl_->num_rows_at + static_cast<std::int64_t>(request) * 8);
  return rows;
}

RoutingSums RoutingWriter::sums(std::size_t request) const {
  std::array<std::uint64_t, 2> both{};
  impl_->get(both.data(), sizeof both, impl_->sums_at + static_cast<std::int64_t>(request) * 16);
  return {both[0], both[1]};
}

RoutingSummer RoutingWriter::summer_of(std::size_t request, std::int64_t rows) const {
  const RoutingLayout& layout = impl_->layout;
  require(
      num_rows(request) >= rows,
      "{} has choices of {} positions of request \"{}\", and {} are needed to go on; start anew "
      "without --resume",
      impl_->path, num_rows(request), layout.requests[request], rows);
  RoutingSummer summer;
  const std::int64_t choices = layout.row_choices();
  const std::int64_t piece = std::max<std::int64_t>(1, (1 << 20) / choices);
  std::vector<std::uint16_t> experts;
  std::vector<float> weights;
  for (std::int64_t done = 0; done < rows; done += piece) {
    const std::int64_t first = (layout.first_row[request] + done) * choices;
    const auto count = static_cast<std::size_t>(std::min(piece, rows - done) * choices);
    experts.resize(count);
    weights.resize(count);
    impl_->get(experts.data(), count * 2, impl_->experts_at + first * 2);
    impl_->get(weights.data(), count * 4, impl_->weights_at + first * 4);
    summer.add(experts, weights);
  }
  return summer;
}

std::int64_t RoutingWriter::bytes_written() const {
  return impl_->bytes_written;
}

}  // namespace atl::io
