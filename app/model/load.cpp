#include "app/model/load.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <future>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>

#include "comm/read_once.hpp"
#include "compute/clock.hpp"
#include "compute/weights.hpp"

namespace atl {

namespace {

using compute::WeightInfo;

/// Tensors that a warning names.
constexpr std::size_t most_named = 8;
/// After so many shared bytes ranks ask whether one of them has failed.
constexpr std::size_t bytes_between_agreements = std::size_t{256} << 20;
/// A read that is long enough for a rate.
constexpr std::size_t rated_read = std::size_t{1} << 20;

/// One weight of this rank.
struct Wanted {
  WeightInfo info;
  std::vector<compute::Dataset> datasets;
  int expert = -1;
  int local_expert = -1;
  std::optional<WeightInfo> tied;  ///< takes the same tensor
};

/// Loads weights one after the other: the next one is read while the last one is packed. A rank
/// that fails still takes part in the exchanges, until the next agreement.
class Loader {
 public:
  Loader(const comm::Communicator& world, const comm::Topology& topology, io::ModelFileReader& file,
         DType stored_dtype, DType dtype, compute::Backend& backend)
      : world_(world), file_(file), stored_dtype_(stored_dtype), dtype_(dtype), backend_(backend) {
    if (world.size() > 1) read_once_.emplace(world, topology);
    for (const io::DatasetInfo& dataset : file.datasets()) {
      index_of_.emplace(dataset.path, static_cast<std::int64_t>(index_of_.size()));
    }
  }

  void load(const std::vector<Wanted>& all) {
    std::future<Tensor> next;
    const auto read_ahead = [&](std::size_t i) {
      if (i == all.size()) return;
      std::vector<std::byte>& buffer = buffers_[i % buffers_.size()];
      reserve(all[i], buffer);  // where it fails, exchanges cannot go on
      next = std::async(std::launch::async,
                        [this, &weight = all[i], &buffer] { return read(weight, buffer); });
    };
    read_ahead(0);
    for (std::size_t i = 0; i < all.size(); ++i) {
      std::vector<std::byte>& buffer = buffers_[i % buffers_.size()];
      Tensor tensor = next.get();
      if (!failed()) read_failure_ = tensor.failure;
      read_ahead(i + 1);
      if (shared(all[i])) share(all[i], buffer);
      if (!failed()) note(comm::failure_of([&] { pack(all[i], tensor, buffer); }));
      // A vocabulary's weight is much larger than what follows it.
      if (buffer.size() > large_bytes) buffer = {};
    }
    buffers_ = {};  // before caches and workspaces are taken
    agree();
  }

  LoadedModel result() {
    result_.cost.bytes_read = file_.bytes_read();
    return std::move(result_);
  }

 private:
  /// What came of reading one weight.
  struct Tensor {
    DType dtype = DType::bfloat16;
    comm::Failure failure;
  };

  bool failed() const { return failure_.exit_code != 0 || read_failure_.exit_code != 0; }

  bool shared(const Wanted& weight) const { return read_once_ && !weight.info.per_expert; }

  void note(const comm::Failure& failure) {
    if (!failed()) failure_ = failure;
  }

  /// What a rank could not read, others got as bytes with a wrong checksum: so the cause goes
  /// first.
  void agree() {
    shared_since_agreement_ = 0;
    for (const comm::Failure* failure : {&read_failure_, &failure_}) {
      world_.agree([failure] {
        if (failure->exit_code != 0) throw Error(failure->message);
      });
    }
  }

  /// Calls visit(dataset, slab, bytes) for each dataset of a weight: a whole one, or an expert's
  /// slab of it.
  template <class Visit>
  void for_each_dataset(const Wanted& weight, std::vector<std::byte>& buffer, Visit&& visit) {
    std::size_t first = 0;
    for (const compute::Dataset& dataset : weight.datasets) {
      const io::DatasetInfo info = file_.dataset(dataset.path);
      const auto bytes = static_cast<std::size_t>(info.slab_bytes());
      visit(info, std::max(weight.expert, 0), std::span(buffer).subspan(first, bytes));
      first += bytes;
    }
  }

  void reserve(const Wanted& weight, std::vector<std::byte>& buffer) {
    std::size_t size = 0;
    for (const compute::Dataset& dataset : weight.datasets) {
      size += static_cast<std::size_t>(file_.dataset(dataset.path).slab_bytes());
    }
    if (buffer.size() < size) buffer.resize(size);
  }

  /// Reads what this rank reads of a weight. The only function that runs beside the others.
  Tensor read(const Wanted& weight, std::vector<std::byte>& buffer) {
    Tensor tensor;
    tensor.failure = comm::failure_of([&] {
      for_each_dataset(
          weight, buffer, [&](const io::DatasetInfo& info, std::int64_t slab, auto all) {
            tensor.dtype = info.dtype;
            if (!shared(weight)) {
              read_part(weight, info, slab, all, {0, all.size()});
              file_.verify(info, slab, all);
              return;
            }
            for_each_piece(
                all, next_read_, [&](std::size_t first, auto piece, std::uint64_t number) {
                  comm::ReadOnce::Slice slice = read_once_->slice_of(piece.size(), number);
                  slice.first += first;
                  read_part(weight, info, slab, all, slice);
                });
          });
    });
    return tensor;
  }

  /// Calls visit(first, piece, number) for pieces of a tensor; `next` counts them all.
  template <class Visit>
  void for_each_piece(std::span<std::byte> all, std::uint64_t& next, Visit&& visit) {
    for (std::size_t first = 0; first < all.size(); first += read_once_->piece_bytes()) {
      visit(first, all.subspan(first, std::min(read_once_->piece_bytes(), all.size() - first)),
            next++);
    }
  }

  void read_part(const Wanted& weight, const io::DatasetInfo& info, std::int64_t slab,
                 std::span<std::byte> all, comm::ReadOnce::Slice slice) {
    if (slice.bytes == 0) return;
    const auto bytes = all.subspan(slice.first, slice.bytes);
    const double begin = now_seconds();
    file_.read_part(info, slab, static_cast<std::int64_t>(slice.first), bytes);
    const double seconds = now_seconds() - begin;
    LoadCost& cost = result_.cost;
    cost.read_s += seconds;
    if (bytes.size() >= rated_read && seconds > 0) {
      cost.best_bytes_per_s =
          std::max(cost.best_bytes_per_s, static_cast<double>(bytes.size()) / seconds);
    }
    if (auto found = non_finite(weight, info, bytes)) {
      const auto offset = static_cast<std::int64_t>(slice.first / size_of(info.dtype));
      compute::NonFinite in_slab;
      in_slab.add(*found, offset);
      result_.non_finite.push_back({index_of_.at(info.path), slab, offset, in_slab});
    }
  }

  std::optional<compute::NonFinite> non_finite(const Wanted& weight, const io::DatasetInfo& info,
                                               std::span<const std::byte> bytes) const {
    const Coding& coding = weight.info.coding;
    if (coding.used()) {
      if (!info.path.ends_with("/scales")) return compute::find_nan_codes(bytes, coding.code);
      return compute::find_non_finite_scales(bytes, coding.code, stored_dtype_, dtype_);
    }
    const bool as_it_is = weight.info.use == compute::Use::vector;
    return compute::find_non_finite(bytes, info.dtype, as_it_is ? DType::float32 : dtype_);
  }

  /// The slices that ranks have read, to all of them.
  void share(const Wanted& weight, std::vector<std::byte>& buffer) {
    const double begin = now_seconds();
    for_each_dataset(weight, buffer, [&](const io::DatasetInfo& info, std::int64_t slab, auto all) {
      for_each_piece(all, next_shared_, [&](std::size_t, auto piece, std::uint64_t number) {
        read_once_->share(piece, number);
      });
      result_.cost.bytes_shared += static_cast<std::int64_t>(all.size());
      shared_since_agreement_ += all.size();
      note(comm::failure_of([&] { file_.verify(info, slab, all); }));
    });
    result_.cost.send_s += now_seconds() - begin;
    if (shared_since_agreement_ >= bytes_between_agreements) agree();
  }

  void pack(const Wanted& weight, const Tensor& tensor, const std::vector<std::byte>& buffer) {
    const double begin = now_seconds();
    const auto give = [&](const WeightInfo& info) {
      HostTensor host{buffer.data(), tensor.dtype, info.rows, info.cols};
      std::int64_t bytes = info.num_elements() * static_cast<std::int64_t>(size_of(tensor.dtype));
      if (info.coding.used()) {
        const std::int64_t codes = info.rows * info.coding.row_bytes(info.cols);
        host.dtype = stored_dtype_;
        host.coding = info.coding;
        host.scales = buffer.data() + codes;
        bytes = codes + info.rows * info.coding.groups(info.cols) * info.coding.scale_bytes();
      }
      backend_.load_weight(info.id, info.layer, weight.local_expert, host);
      result_.cost.bytes_packed += bytes;
    };
    give(weight.info);
    if (weight.tied) give(*weight.tied);
    result_.cost.pack_s += now_seconds() - begin;
  }

  static constexpr std::size_t large_bytes = std::size_t{64} << 20;

  const comm::Communicator& world_;
  io::ModelFileReader& file_;
  DType stored_dtype_;  // that elements of codes are rounded to
  DType dtype_;
  compute::Backend& backend_;
  std::optional<comm::ReadOnce> read_once_;  // where there are others
  std::unordered_map<std::string, std::int64_t> index_of_;
  std::array<std::vector<std::byte>, 2> buffers_;
  std::uint64_t next_read_ = 0;    // pieces, counted alike on all ranks
  std::uint64_t next_shared_ = 0;  // the same pieces
  std::size_t shared_since_agreement_ = 0;
  comm::Failure read_failure_;  // the first of this rank, in reading
  comm::Failure failure_;       // or in what follows
  LoadedModel result_;
};

/// In the order of the file; a tied head comes with the embedding, whose tensor it is.
std::vector<Wanted> wanted_of(const ModelConfig& config, const compute::Part& part) {
  std::vector<Wanted> all;
  compute::for_each_weight(
      config.shape, part, [&](const WeightInfo& info, int expert, int local_expert) {
        const bool tied = config.tie_word_embeddings && info.id == compute::Weight::lm_head;
        if (tied && all.front().info.id == compute::Weight::embedding) {
          all.front().tied = info;
        } else {
          all.push_back({info, info.datasets, expert, local_expert, std::nullopt});
          if (info.coding.used()) {  // all codes, then all their scales
            for (const compute::Dataset& dataset : info.datasets) {
              all.back().datasets.push_back({compute::scales_path(dataset.path), dataset.rows});
            }
          }
          if (tied) all.back().datasets = compute::weights_of(config.shape).front().datasets;
        }
      });
  return all;
}

}  // namespace

LoadedModel load_weights(const comm::Communicator& world, const comm::Topology& topology,
                         io::ModelFileReader& file, const ModelConfig& config,
                         const compute::Part& part, DType dtype, compute::Backend& backend) {
  Loader loader(world, topology, file, config.dtype, dtype, backend);
  loader.load(wanted_of(config, part));
  world.agree([&] { backend.finish_loading(); });
  return loader.result();
}

bool warn_of_non_finite(const comm::Communicator& world, const io::ModelFileReader& file,
                        DType dtype, const std::vector<NonFinitePart>& found) {
  // A slab that several ranks hold, each has read; of the others each rank read a part.
  std::map<std::array<std::int64_t, 3>, compute::NonFinite> parts;
  for (const auto& of_rank : world.gather_vectors(std::span(found), 0)) {
    for (const NonFinitePart& part : of_rank) {
      parts[{part.dataset, part.slab, part.first}] = part.found;
    }
  }
  if (parts.empty()) return false;
  const std::vector<io::DatasetInfo> datasets = file.datasets();
  std::map<std::int64_t, compute::NonFinite> by_dataset;
  for (const auto& [place, part] : parts) {
    const auto& [dataset, slab, first] = place;
    const std::int64_t elements = datasets[static_cast<std::size_t>(dataset)].slab_elements();
    by_dataset[dataset].add(part, slab * elements);
  }
  std::string text =
      fmt::format("{}: weights are not finite in {}; requests that meet them end with an error\n",
                  file.path(), name_of(dtype));
  std::size_t named = 0;
  for (const auto& [dataset, values] : by_dataset) {
    if (named++ == most_named) break;
    const io::DatasetInfo& info = datasets[static_cast<std::size_t>(dataset)];
    text += fmt::format("  {}: {}\n", info.path, compute::text_of(values, info.shape));
  }
  if (by_dataset.size() > most_named) {
    text += fmt::format("  and {} more tensors\n", by_dataset.size() - most_named);
  }
  fmt::print(stderr, "{}", text);
  return std::any_of(by_dataset.begin(), by_dataset.end(), [](const auto& entry) {
    return entry.second.num_nan + entry.second.num_infinite > 0;
  });
}

}  // namespace atl
