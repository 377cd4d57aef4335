#include "app/model/load.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <future>
#include <map>
#include <string>
#include <unordered_map>

#include "compute/weights.hpp"

namespace atl {

namespace {

using compute::WeightInfo;

/// Tensors that a warning names.
constexpr std::size_t most_named = 8;

/// One weight of this rank.
struct Wanted {
  WeightInfo info;
  std::vector<compute::Dataset> datasets;
  int expert = -1;
  int local_expert = -1;
};

/// Reads weights one after the other, the next one while the last one is packed.
class Loader {
 public:
  Loader(io::ModelFileReader& file, DType dtype, compute::Backend& backend)
      : file_(file), dtype_(dtype), backend_(backend) {
    for (const io::DatasetInfo& dataset : file.datasets()) {
      index_of_.emplace(dataset.path, static_cast<std::int64_t>(index_of_.size()));
    }
  }

  void load(const std::vector<Wanted>& all) {
    std::future<HostTensor> next;
    const auto read_ahead = [&](std::size_t i) {
      if (i == all.size()) return;
      next = std::async(std::launch::async, [this, &weight = all[i], i] {
        return read(weight, buffers_[i % buffers_.size()]);
      });
    };
    read_ahead(0);
    for (std::size_t i = 0; i < all.size(); ++i) {
      const HostTensor tensor = next.get();
      read_ahead(i + 1);
      backend_.load_weight(all[i].info.id, all[i].info.layer, all[i].local_expert, tensor);
      // A vocabulary's weight is much larger than what follows it.
      std::vector<std::byte>& packed = buffers_[i % buffers_.size()];
      if (packed.size() > large_bytes) packed = {};
    }
    buffers_ = {};  // before caches and workspaces are taken
  }

  std::vector<NonFiniteSlab>& non_finite() { return non_finite_; }

 private:
  /// One weight from its datasets: whole ones, or an expert's slab of each.
  HostTensor read(const Wanted& weight, std::vector<std::byte>& buffer) {
    const WeightInfo& info = weight.info;
    HostTensor tensor{nullptr, dtype_, info.rows, info.cols};
    std::size_t size = 0;
    for (const compute::Dataset& dataset : weight.datasets) {
      const io::DatasetInfo part = file_.dataset(dataset.path);
      const auto bytes = static_cast<std::size_t>(part.slab_bytes());
      if (buffer.size() < size + bytes) buffer.resize(size + bytes);
      const auto elements = std::span(buffer).subspan(size, bytes);
      const std::int64_t slab = std::max(weight.expert, 0);
      file_.read_slab(part, slab, elements);
      const DType used_as = info.use == compute::Use::vector ? DType::float32 : dtype_;
      if (const auto found = compute::find_non_finite(elements, part.dtype, used_as)) {
        non_finite_.push_back({index_of_.at(part.path), slab, *found});
      }
      tensor.dtype = part.dtype;
      size += bytes;
    }
    tensor.data = buffer.data();
    return tensor;
  }

  static constexpr std::size_t large_bytes = std::size_t{64} << 20;

  io::ModelFileReader& file_;
  DType dtype_;
  compute::Backend& backend_;
  std::unordered_map<std::string, std::int64_t> index_of_;
  std::array<std::vector<std::byte>, 2> buffers_;
  std::vector<NonFiniteSlab> non_finite_;
};

}  // namespace

std::vector<NonFiniteSlab> load_weights(io::ModelFileReader& file, const ModelConfig& config,
                                        const compute::Part& part, DType dtype,
                                        compute::Backend& backend) {
  Loader loader(file, dtype, backend);
  const std::vector<compute::Dataset> embedding =
      compute::weights_of(config.shape).front().datasets;
  std::vector<Wanted> all;
  const auto visit = [&](const WeightInfo& info, int expert, int local_expert) {
    const bool tied = config.tie_word_embeddings && info.id == compute::Weight::lm_head;
    all.push_back({info, tied ? embedding : info.datasets, expert, local_expert});
  };
  compute::for_each_weight(config.shape, part, visit);
  loader.load(all);
  backend.finish_loading();
  return std::move(loader.non_finite());
}

bool warn_of_non_finite(const comm::Communicator& world, const io::ModelFileReader& file,
                        DType dtype, const std::vector<NonFiniteSlab>& found) {
  // Ranks share what is not an expert's, and a tied head is read twice.
  std::map<std::pair<std::int64_t, std::int64_t>, compute::NonFinite> slabs;
  for (const auto& of_rank : world.gather_vectors(std::span(found), 0)) {
    for (const NonFiniteSlab& slab : of_rank) slabs[{slab.dataset, slab.slab}] = slab.found;
  }
  if (slabs.empty()) return false;
  const std::vector<io::DatasetInfo> datasets = file.datasets();
  std::map<std::int64_t, compute::NonFinite> by_dataset;
  for (const auto& [place, slab] : slabs) {
    const auto& [dataset, number] = place;
    by_dataset[dataset].add(slab,
                            number * datasets[static_cast<std::size_t>(dataset)].slab_elements());
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
