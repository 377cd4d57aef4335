// Writing checkpoints: the layout and the small tables collectively, keys and values by each rank
// when it has time for them.

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>

#include "compute/error.hpp"
#include "io/checkpoint.hpp"
#include "io/checkpoint_layout.hpp"
#include "io/parallel_file.hpp"

namespace atl::io {

namespace {

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

}  // namespace

struct CheckpointWriter::Impl {
  /// A dataset of which each rank writes some rows of the first dimension; or rank 0 all.
  struct Table {
    Handle data;
    const char* name = "";
    hid_t type = H5I_INVALID_HID;  // in memory and on file
    std::vector<hsize_t> extent;
    std::size_t element_bytes = 0;
    bool by_part = false;
    std::uint64_t checksum = 0;  // of this rank's part
  };

  Impl(std::string output, const CheckpointContents& c, int mpi_comm_f)
      : path(std::move(output)), contents(c), writers(mpi_comm_f) {}
  ~Impl();

  std::string path;
  CheckpointContents contents;
  Writers writers;
  std::string temporary;  // empty: there is no temporary file
  std::string what;
  Handle file, kv_type;
  Table state, parts, sequences, tokens, logprobs, tops, keys, values, kv_checksums, pending, loads;
  std::vector<PartCounts> counts;  // [ranks]
  PartCounts before{};             // of the ranks before this one
  std::size_t first_sequence = 0;  // of this rank, among all
  hsize_t num_pending = 0;
  std::vector<CheckpointSequence> own;
  std::vector<std::int64_t> first_position, first_piece;  // of each own sequence, among all ranks'
  std::vector<std::uint64_t> checksums;                   // [own pieces, layers, 2]
  std::int64_t bytes_written = 0;
  std::thread syncer;
  std::atomic<int> sync_result{-1};  // an errno; -1 while it runs

  const PartCounts& mine() const { return counts[static_cast<std::size_t>(writers.rank())]; }
  void count_parts(std::size_t own_tokens, std::size_t own_logprobs, std::size_t own_tops);
  void create();
  void make(Table& table, const char* name, hid_t type, std::vector<hsize_t> extent, bool by_part);
  void write_rows(Table& table, std::int64_t first, std::span<const std::byte> bytes,
                  bool collective);
  void write_part(Table& table, std::int64_t first, std::span<const std::byte> bytes);
  void write_kv(Table& table, int layer, std::int64_t first, std::int64_t count,
                std::span<const std::byte> bytes);
  void write_checksums();
  bool close_handles();
  void wait_for_sync();
  void agree(const std::string& error);
  std::vector<Table*> tables() {
    return {&state, &parts,  &sequences,    &tokens,  &logprobs, &tops,
            &keys,  &values, &kv_checksums, &pending, &loads};
  }
};

CheckpointWriter::Impl::~Impl() {
  wait_for_sync();
  if (temporary.empty()) return;
  // Closing a parallel file is collective, and the other ranks may be elsewhere: leave it to the
  // end of the process.
  if (!writers.alone()) {
    for (Table* table : tables()) table->data.release();
    file.release();
  }
  unlink(temporary.c_str());
}

void CheckpointWriter::Impl::wait_for_sync() {
  if (syncer.joinable()) syncer.join();
}

void CheckpointWriter::Impl::agree(const std::string& error) {
  throw_agreed(writers, error, temporary, [this] { close_handles(); });
}

bool CheckpointWriter::Impl::close_handles() {
  bool closed = true;
  for (Table* table : tables()) closed = table->data.close() && closed;
  return file.close() && closed;
}

/// Who has how much of what, from the sequences alone; all ranks know them.
void CheckpointWriter::Impl::count_parts(std::size_t own_tokens, std::size_t own_logprobs,
                                         std::size_t own_tops) {
  require(contents.sequences_of.size() == static_cast<std::size_t>(writers.size()),
          "internal: a checkpoint by {} ranks has parts of {}", writers.size(),
          contents.sequences_of.size());
  std::size_t sequence = 0;
  for (std::size_t rank = 0; rank < contents.sequences_of.size(); ++rank) {
    const bool is_own = static_cast<int>(rank) == writers.rank();
    if (is_own) first_sequence = sequence;
    if (is_own && rank > 0) {
      for (const PartCounts& other : counts) {
        for (std::size_t i = 0; i < num_part_counts; ++i) before[i] += other[i];
      }
    }
    PartCounts& part = counts.emplace_back();
    part[part_sequences] = contents.sequences_of[rank];
    for (std::int64_t i = 0; i < part[part_sequences]; ++i, ++sequence) {
      const CheckpointSequence& s = contents.sequences.at(sequence);
      if (is_own) {
        own.push_back(s);
        first_position.push_back(before[part_positions] + part[part_positions]);
        first_piece.push_back(before[part_pieces] + part[part_pieces]);
      }
      part[part_tokens] += s.generated;
      part[part_logprobs] += s.logprobs;
      part[part_tops] += s.tops;
      part[part_positions] += s.cached;
      part[part_pieces] += s.num_pieces();
    }
  }
  require(static_cast<std::int64_t>(own_tokens) == mine()[part_tokens] &&
              static_cast<std::int64_t>(own_logprobs) == mine()[part_logprobs] &&
              static_cast<std::int64_t>(own_tops) == mine()[part_tops],
          "internal: a checkpoint got {} tokens, {} log-probabilities and {} others, not {}, {} "
          "and {}",
          own_tokens, own_logprobs, own_tops, mine()[part_tokens], mine()[part_logprobs],
          mine()[part_tops]);
  checksums.resize(static_cast<std::size_t>(mine()[part_pieces] * contents.num_layers) *
                   kv_checksum_fields);
}

void CheckpointWriter::Impl::make(Table& table, const char* name, hid_t type,
                                  std::vector<hsize_t> extent, bool by_part) {
  const std::string problem = fmt::format("{}: dataset {}", what, name);
  const Handle creation = checked(H5Pcreate(H5P_DATASET_CREATE), problem);
  check(H5Pset_obj_track_times(creation.get(), false), problem);
  check(H5Pset_layout(creation.get(), H5D_CONTIGUOUS), problem);
  check(H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY), problem);
  check(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER), problem);
  const Handle space =
      extent.empty()
          ? checked(H5Screate(H5S_SCALAR), problem)
          : checked(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr),
                    problem);
  table.data = checked(
      H5Dcreate2(file.get(), name, type, space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT),
      problem);
  table.name = name;
  table.type = type;
  table.extent = std::move(extent);
  table.element_bytes = H5Tget_size(type);
  table.by_part = by_part;
  make_u64_attribute(table.data.get(), checksum_attribute, by_part ? counts.size() : 1);
}

void CheckpointWriter::Impl::create() {
  PartCounts all{};
  for (const PartCounts& part : counts) {
    for (std::size_t i = 0; i < num_part_counts; ++i) all[i] += part[i];
  }
  const auto total = [&all](PartCount count) { return static_cast<hsize_t>(all[count]); };
  const auto layers = static_cast<hsize_t>(contents.num_layers);
  file = make_file(temporary, writers, what);
  const Handle root = checked(H5Gopen2(file.get(), "/", H5P_DEFAULT), what);
  write_text_attribute(root.get(), "format", checkpoint_format);
  make_u64_attribute(root.get(), "format_version", 1);
  set_u64_attribute(root.get(), "format_version", &checkpoint_format_version);
  const Handle text = checked(H5Tcopy(H5T_C_S1), what);
  check(H5Tset_size(text.get(), contents.state.size()), what);
  check(H5Tset_strpad(text.get(), H5T_STR_NULLPAD), what);
  check(H5Tset_cset(text.get(), H5T_CSET_UTF8), what);
  make(state, "state", text.get(), {}, false);
  state.type = H5I_INVALID_HID;  // its bytes are written as they are
  make(parts, "parts", H5T_STD_I64LE, {counts.size(), num_part_counts}, false);
  make(sequences, "sequences", H5T_STD_I64LE, {total(part_sequences), sequence_fields}, true);
  make(tokens, "tokens", H5T_STD_I32LE, {total(part_tokens)}, true);
  make(logprobs, "logprobs", H5T_IEEE_F32LE, {total(part_logprobs)}, true);
  make(tops, "tops", H5T_STD_U64LE, {total(part_tops)}, true);
  make(pending, "pending", H5T_STD_I64LE, {num_pending}, false);
  make(loads, "expert_loads", H5T_STD_I64LE, {layers, static_cast<hsize_t>(contents.num_experts)},
       false);
  make(kv_checksums, "kv_checksums", H5T_STD_U64LE,
       {total(part_pieces), layers, kv_checksum_fields}, true);
  kv_type = file_type(contents.dtype);
  const std::vector<hsize_t> extent = {layers, total(part_positions),
                                       static_cast<hsize_t>(contents.num_kv_heads),
                                       static_cast<hsize_t>(contents.head_dim)};
  make(keys, "keys", kv_type.get(), extent, true);
  make(values, "values", kv_type.get(), extent, true);
}

/// Rows [first, ...) of the first dimension. Collective writes have a part on every rank.
void CheckpointWriter::Impl::write_rows(Table& table, std::int64_t first,
                                        std::span<const std::byte> bytes, bool collective) {
  const std::string problem = fmt::format("{}: dataset {}", what, table.name);
  std::vector<hsize_t> start(table.extent.size(), 0);
  std::vector<hsize_t> count = table.extent;
  hsize_t row_elements = 1;
  for (std::size_t dim = 1; dim < count.size(); ++dim) row_elements *= count[dim];
  start[0] = static_cast<hsize_t>(first);
  count[0] = bytes.size() / (row_elements * table.element_bytes);
  const Handle space = checked(H5Dget_space(table.data.get()), problem);
  const hsize_t elements = count[0] * row_elements;
  const Handle memory = checked(H5Screate_simple(1, &elements, nullptr), problem);
  if (elements == 0) {
    check(H5Sselect_none(space.get()), problem);
    check(H5Sselect_none(memory.get()), problem);
  } else {
    check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(),
                              nullptr),
          problem);
  }
  const Handle transfer = checked(H5Pcreate(H5P_DATASET_XFER), problem);
  if (collective && !writers.alone()) {
    check(H5Pset_dxpl_mpio(transfer.get(), H5FD_MPIO_COLLECTIVE), problem);
  }
  const std::byte nothing{};
  check(H5Dwrite(table.data.get(), table.type, memory.get(), space.get(), transfer.get(),
                 bytes.empty() ? &nothing : bytes.data()),
        problem + ": is the disk full?");
  bytes_written += static_cast<std::int64_t>(bytes.size());
}

/// Collective: every rank's own rows, or all of them from rank 0.
void CheckpointWriter::Impl::write_part(Table& table, std::int64_t first,
                                        std::span<const std::byte> bytes) {
  if (!table.by_part && !writers.first()) bytes = {};
  table.checksum = checksum_of(bytes);
  if (std::find(table.extent.begin(), table.extent.end(), hsize_t{0}) != table.extent.end()) return;
  write_rows(table, first, bytes, /*collective=*/true);
}

void CheckpointWriter::Impl::write_kv(Table& table, int layer, std::int64_t first,
                                      std::int64_t count, std::span<const std::byte> bytes) {
  const std::string problem = fmt::format("{}: dataset {}", what, table.name);
  const hsize_t start[] = {static_cast<hsize_t>(layer), static_cast<hsize_t>(first), 0, 0};
  const hsize_t extent[] = {1, static_cast<hsize_t>(count), table.extent[2], table.extent[3]};
  const Handle space = checked(H5Dget_space(table.data.get()), problem);
  check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start, nullptr, extent, nullptr), problem);
  const hsize_t elements = extent[1] * extent[2] * extent[3];
  const Handle memory = checked(H5Screate_simple(1, &elements, nullptr), problem);
  check(
      H5Dwrite(table.data.get(), table.type, memory.get(), space.get(), H5P_DEFAULT, bytes.data()),
      problem + ": is the disk full?");
  bytes_written += static_cast<std::int64_t>(bytes.size());
}

/// Collective: every rank's checksums of its parts, as attributes of the datasets.
void CheckpointWriter::Impl::write_checksums() {
  for (Table* table : tables()) {
    std::vector<std::uint64_t> sums(table->by_part ? counts.size() : 1, 0);
    // Each entry has one writer and is 0 elsewhere, so that the sum is its checksum.
    if (table->by_part) {
      sums[static_cast<std::size_t>(writers.rank())] = table->checksum;
    } else if (writers.first()) {
      sums[0] = table->checksum;
    }
    writers.add_up(sums);
    set_u64_attribute(table->data.get(), checksum_attribute, sums.data());
  }
}

CheckpointPiece piece_of(const CheckpointSequence& sequence, std::int64_t index) {
  const std::int64_t first = index * piece_positions;
  return {first, std::min(piece_positions, sequence.cached - first)};
}

CheckpointWriter::CheckpointWriter(const std::string& path, const CheckpointContents& contents,
                                   std::span<const std::int32_t> tokens,
                                   std::span<const float> logprobs,
                                   std::span<const SampledToken> tops, int mpi_comm_f)
    : impl_(std::make_unique<Impl>(path, contents, mpi_comm_f)) {
  prepare_hdf5();
  Impl& impl = *impl_;
  impl.what = fmt::format("cannot write {}", path);
  impl.count_parts(tokens.size(), logprobs.size(), tops.size());
  impl.num_pending = std::stoull(impl.writers.broadcast(std::to_string(contents.pending.size())));
  impl.temporary = path + impl.writers.broadcast(random_suffix());
  impl.agree(error_of([&] {
    if (impl.writers.first()) create_exclusively(path, impl.temporary);
  }));
  impl.agree(error_of([&] { impl.create(); }));
  impl.agree(error_of([&] {
    hsize_t bytes = 0;
    for (const Impl::Table* table : impl.tables()) {
      const hsize_t size = H5Dget_storage_size(table->data.get());
      if (size > 0) bytes = std::max<hsize_t>(bytes, H5Dget_offset(table->data.get()) + size);
    }
    if (impl.writers.first()) reserve_room(path, impl.temporary, bytes);
  }));
  impl.agree(error_of([&] {
    const Handle text = checked(H5Dget_type(impl.state.data.get()), impl.what);
    impl.state.checksum = checksum_of(std::as_bytes(std::span(contents.state)));
    if (impl.writers.first()) {
      check(H5Dwrite(impl.state.data.get(), text.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT,
                     contents.state.data()),
            impl.what);
    }
    impl.write_part(impl.parts, 0, bytes_of(impl.counts));
    impl.write_part(impl.pending, 0, bytes_of(contents.pending));
    impl.write_part(impl.loads, 0, bytes_of(contents.expert_loads));
    impl.write_part(impl.tokens, impl.before[part_tokens], std::as_bytes(tokens));
    impl.write_part(impl.logprobs, impl.before[part_logprobs], std::as_bytes(logprobs));
    static_assert(sizeof(SampledToken) == sizeof(std::uint64_t));
    impl.write_part(impl.tops, impl.before[part_tops], std::as_bytes(tops));
  }));
}

CheckpointWriter::~CheckpointWriter() = default;

void CheckpointWriter::write_piece(std::int64_t sequence, int layer, std::int64_t piece,
                                   std::span<const std::byte> keys,
                                   std::span<const std::byte> values) {
  Impl& impl = *impl_;
  const auto s = static_cast<std::size_t>(sequence);
  const auto [first, count] = piece_of(impl.own.at(s), piece);
  const auto bytes = static_cast<std::size_t>(count * impl.contents.row_bytes());
  require(count > 0 && keys.size() == bytes && values.size() == bytes,
          "internal: a piece of {} positions has {} and {} bytes", count, keys.size(),
          values.size());
  impl.write_kv(impl.keys, layer, impl.first_position[s] + first, count, keys);
  impl.write_kv(impl.values, layer, impl.first_position[s] + first, count, values);
  const std::int64_t row = impl.first_piece[s] + piece - impl.before[part_pieces];
  const auto at =
      static_cast<std::size_t>(row * impl.contents.num_layers + layer) * kv_checksum_fields;
  impl.checksums[at] = checksum_of(keys);
  impl.checksums[at + 1] = checksum_of(values);
}

void CheckpointWriter::set_complete(std::int64_t sequence) {
  impl_->own.at(static_cast<std::size_t>(sequence)).complete = 1;
}

void CheckpointWriter::start_sync() {
  Impl& impl = *impl_;
  impl.syncer = std::thread([&impl] {
    const int file = open(impl.temporary.c_str(), O_WRONLY | O_CLOEXEC);
    if (file < 0) {
      impl.sync_result = errno;
      return;
    }
    const int result = fdatasync(file) == 0 || errno == EINVAL ? 0 : errno;
    ::close(file);
    impl.sync_result = result;
  });
}

bool CheckpointWriter::synced() {
  const int result = impl_->sync_result;
  require(result <= 0, "{}: {}", impl_->what, std::strerror(result));
  return result == 0;
}

void CheckpointWriter::finish() {
  Impl& impl = *impl_;
  impl.wait_for_sync();
  impl.agree(error_of([&] {
    impl.write_part(impl.sequences, impl.before[part_sequences], bytes_of(impl.own));
    impl.write_part(impl.kv_checksums, impl.before[part_pieces], bytes_of(impl.checksums));
    impl.write_checksums();
    check(H5Fflush(impl.file.get(), H5F_SCOPE_GLOBAL), impl.what + ": is the disk full?");
    if (!impl.close_handles()) fail("{}: is the disk full? (HDF5: {})", impl.what, hdf5_error());
  }));
  impl.agree(error_of([&] {
    if (impl.writers.first()) publish(impl.temporary, impl.path);
  }));
  impl.temporary.clear();
}

void CheckpointWriter::abandon() {
  Impl& impl = *impl_;
  impl.wait_for_sync();
  impl.close_handles();
  if (impl.writers.first()) unlink(impl.temporary.c_str());
  impl.temporary.clear();
}

std::int64_t CheckpointWriter::bytes_written() const {
  return impl_->bytes_written;
}

}  // namespace atl::io
