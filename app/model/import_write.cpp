// Importing: tensors read, decoded and written.

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "app/model/import.hpp"
#include "app/model/import_plan.hpp"
#include "comm/watchdog.hpp"

namespace atl {
namespace {

/// The first rank flushes the whole file to disk at the end, while the others wait.
constexpr double closing_s = 3600;

/// File and offset of what a slab is made of. Two weights may be made of one part (kv_b_proj).
using Part = std::pair<std::size_t, std::int64_t>;
Part part_of(const Source& source) {
  return {source.part.file, source.part.offset};
}

/// Slabs dealt out to ranks in turn, those of one part to the same rank.
class Dealt {
 public:
  explicit Dealt(int num_ranks) : num_ranks_(num_ranks) {}

  int rank_of(const Source& source) {
    const auto [found, is_new] = ranks_.try_emplace(part_of(source), next_);
    if (is_new) next_ = (next_ + 1) % num_ranks_;
    return found->second;
  }

 private:
  int num_ranks_;
  int next_ = 0;
  std::map<Part, int> ranks_;
};

/// Values that are not finite, by stored tensor; each part counts once.
class NonFiniteReport {
 public:
  void look(const Source& source, std::span<const std::byte> bytes, DType dtype) {
    const std::optional<compute::NonFinite> found = compute::find_non_finite(bytes, dtype);
    if (!found || !parts_.insert(part_of(source)).second) return;
    if (tensors_.empty() || tensors_.back().name != source.name) {
      tensors_.push_back({source.name, source.shape, {}});
    }
    tensors_.back().found.add(*found, source.element);
  }

  void tell(const io::Warn& warn) const {
    for (std::size_t i = 0; i < std::min(tensors_.size(), max_tensors_named); ++i) {
      const Tensor& tensor = tensors_[i];
      warn(fmt::format("tensor {} has {}", tensor.name, text_of(tensor.found, tensor.shape)));
    }
    if (tensors_.size() > max_tensors_named) {
      warn(fmt::format("{} more tensors have values that are not finite",
                       tensors_.size() - max_tensors_named));
    }
  }

 private:
  struct Tensor {
    std::string name;
    std::vector<std::int64_t> shape;
    compute::NonFinite found;
  };
  std::vector<Tensor> tensors_;
  std::set<Part> parts_;
};

/// Says how far an import is, each time that another tenth is there.
class Progress {
 public:
  Progress(std::int64_t bytes, bool tells, const io::Warn& warn)
      : bytes_(bytes), tells_(tells && bytes >= worth_telling), warn_(warn) {}

  void add(std::int64_t bytes) {
    done_ += bytes;
    const std::int64_t tenth = bytes_ == 0 ? 0 : 10 * done_ / bytes_;
    if (!tells_ || tenth == told_) return;
    told_ = tenth;
    warn_(fmt::format("{} of {:.1f} GB written", fmt::format("{:.1f}", gigabytes(done_)),
                      gigabytes(bytes_)));
  }

 private:
  static constexpr std::int64_t worth_telling = std::int64_t{8} << 30;
  static double gigabytes(std::int64_t bytes) { return static_cast<double>(bytes) * 1e-9; }

  std::int64_t bytes_;
  std::int64_t done_ = 0;
  std::int64_t told_ = 0;
  bool tells_;
  const io::Warn& warn_;
};

std::int64_t slab_bytes_of(const TensorInfo& target) {
  const io::DatasetInfo info{target.path, target.shape, target.dtype, {}, target.per_expert};
  return info.slab_bytes();
}

/// One line that says what is written where: the model and its files, as they are now.
std::string key_of(const ImportPlan& plan) {
  namespace fs = std::filesystem;
  std::string text = plan.config.to_json();
  for (const Import& import : plan.imports) {
    text += fmt::format("\n{} {} {}", import.target.path, name_of(import.target.dtype),
                        fmt::join(import.target.shape, " "));
    for (const Source& source : import.slabs) {
      text += fmt::format(" {} {} {}", source.part.file, source.part.offset, source.part.bytes);
    }
  }
  for (const std::string& file : plan.stored.files()) {
    std::error_code ignored;
    text += fmt::format("\n{} {} {}", file, fs::file_size(file, ignored),
                        fs::last_write_time(file, ignored).time_since_epoch().count());
  }
  for (const io::Attachment& one : plan.tokenizer) text += one.path + one.bytes;
  return fmt::format("atoll-import 1 {:016x}", io::checksum_of(std::as_bytes(std::span(text))));
}

/// This rank's slabs of all tensors, which are dealt out in turn.
void write_slabs(const ImportPlan& plan, const ImportShare& share, io::ModelFileWriter& writer,
                 NonFiniteReport& report, const io::Warn& warn) {
  std::int64_t bytes = 0;
  for (const Import& import : plan.imports) {
    bytes += slab_bytes_of(import.target) * static_cast<std::int64_t>(import.slabs.size());
  }
  Progress progress(bytes, share.rank == 0, warn);
  ReadBuffers buffers;
  KeptBuffers kept_buffers;
  std::vector<std::byte> picked;
  Dealt dealt(share.num_ranks);
  for (std::size_t d = 0; d < plan.imports.size(); ++d) {
    const Import& import = plan.imports[d];
    for (std::size_t slab = 0; slab < import.slabs.size(); ++slab) {
      progress.add(slab_bytes_of(import.target));
      const Source& source = import.slabs[slab];
      if (dealt.rank_of(source) != share.rank) continue;
      const bool kept = import.target.coding.used();
      const bool before = writer.written_before(d, static_cast<std::int64_t>(slab), picked);
      std::span<const std::byte> there = picked;
      if (kept && !before) {
        there = read_kept_slab(plan.stored, import.target, source, kept_buffers);
        writer.write_slab(d, static_cast<std::int64_t>(slab), there);
      }
      // Codes are not decoded, nor what an earlier import wrote read again, but for the names.
      if (kept && (import.target.scales || !may_be_non_finite(plan.stored, source, there,
                                                              plan.config.dtype, kept_buffers))) {
        continue;
      }
      if (!kept && before && !compute::find_non_finite(there, import.target.dtype)) continue;
      const auto look = [&](std::span<const std::byte> read, DType type) {
        report.look(source, read, type);
      };
      const DType dtype = kept ? plan.config.dtype : import.target.dtype;
      const std::span<const std::byte> values = read_as(plan.stored, source, dtype, buffers, look);
      if (kept || before) continue;
      writer.write_slab(d, static_cast<std::int64_t>(slab),
                        source.picking.apply(values, dtype, picked));
    }
  }
}

}  // namespace

void write_import(const ImportPlan& plan, const std::string& output, const ImportShare& share,
                  const io::Warn& warn) {
  std::vector<io::ModelFileWriter::Dataset> datasets;
  for (const Import& i : plan.imports) {
    datasets.push_back({i.target.path, i.target.shape, i.target.per_expert, i.target.dtype});
  }
  std::optional<io::ModelFileWriter> writer;
  {
    const comm::Waiting waiting("creating the model file");
    writer.emplace(output, plan.config.to_json(), plan.config.dtype, datasets, share.mpi_comm_f,
                   plan.tokenizer, key_of(plan));
  }
  if (const std::int64_t before = writer->slabs_written_before(); before > 0 && share.rank == 0) {
    warn(fmt::format("goes on with what an interrupted import of these files has left: {} matrices",
                     before));
  }
  NonFiniteReport report;
  if (share.num_ranks == 1) {
    write_slabs(plan, share, *writer, report, warn);
  } else {
    // All end together: what one cannot read, the others hear of when the file is closed.
    try {
      write_slabs(plan, share, *writer, report, warn);
    } catch (const std::exception& error) {
      writer->set_failed(error.what());
    }
    comm::watched::stage("closing the model file", closing_s);
  }
  const comm::Waiting waiting("closing the model file");
  writer->close();
  report.tell(warn);
}

void import_hf(const std::string& folder, const std::string& output, const io::Warn& warn,
               KeptWeights weights) {
  write_import(plan_import(folder, weights, warn), output, {}, warn);
}

}  // namespace atl
