// Reading checkpoints, by each process for itself.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "compute/error.hpp"
#include "io/checkpoint.hpp"
#include "io/checkpoint_layout.hpp"
#include "io/hdf5_handle.hpp"
#include "io/model_file.hpp"

namespace atl::io {

namespace {

constexpr std::size_t max_dims = 4;
constexpr const char* wanted_file = "a checkpoint that atoll run wrote";

}  // namespace

struct CheckpointReader::Impl {
  struct Table {
    Handle data;
    std::string what;                      // start of its messages
    std::vector<std::int64_t> extent;      // empty: a scalar
    std::vector<std::uint64_t> checksums;  // of its parts
    std::size_t element_bytes = 0;
  };

  std::string path;
  std::int64_t file_bytes = 0;
  Handle file, kv_type;
  CheckpointContents contents;
  std::vector<PartCounts> counts;  // [ranks that wrote it]
  std::vector<std::int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<std::uint64_t> tops;  // bytes of SampledToken each
  std::vector<std::uint64_t> kv_checksums;
  Table keys, values;
  std::vector<std::int64_t> first_token, first_logprob, first_position, first_piece;  // [sequences]
  std::vector<std::int64_t> first_top, first_of_rank;                                 // the same

  void open();
  Table table(const char* name, std::size_t num_dims, hid_t type) const;
  void check_place(const Table& t) const;
  template <class T>
  std::vector<T> read(const Table& table, hid_t type) const;
  /// Compares a table's parts, of which rank r has rows_of(r) rows, with their checksums.
  template <class T>
  void compare(const Table& table, const std::vector<T>& all, PartCount count) const;
  void compare_whole(const Table& table, std::span<const std::byte> bytes) const;
  void read_state();
  void read_sequences();
  void check_sequences();
  void check_beginning(std::size_t sequence) const;
  void read_kv(const Table& table, int layer, std::int64_t first, std::int64_t count,
               std::uint64_t expected, std::span<std::byte> destination) const;
};

void CheckpointReader::Impl::open() {
  file_bytes = check_is_hdf5(path, wanted_file);
  file = open_for_reading(path);
  const Handle root = checked(H5Gopen2(file.get(), "/", H5P_DEFAULT),
                              fmt::format("cannot read {}: truncated or damaged", path));
  const std::string format = read_text_attribute(
      root.get(), "format",
      fmt::format("cannot read {}: not a checkpoint (attribute \"format\" of /)", path));
  require(format == checkpoint_format,
          "cannot read {}: its format is \"{}\", must be \"{}\"; give {}", path, format,
          checkpoint_format, wanted_file);
  const auto version =
      read_u64_attribute(root.get(), "format_version",
                         fmt::format("cannot read {}: attribute \"format_version\" of /", path));
  require(version.size() == 1 && version[0] == checkpoint_format_version,
          "cannot read {}: format version {}, this build reads {}", path,
          version.empty() ? 0 : version[0], checkpoint_format_version);
}

/// Opens a dataset after checking that it is what the format says. `type` H5I_INVALID_HID: any.
CheckpointReader::Impl::Table CheckpointReader::Impl::table(const char* name, std::size_t num_dims,
                                                            hid_t type) const {
  Table t;
  t.what = fmt::format("cannot read {}: dataset {}", path, name);
  t.data = checked(H5Dopen2(file.get(), name, H5P_DEFAULT), t.what);
  const Handle on_file = checked(H5Dget_type(t.data.get()), t.what);
  require(type == H5I_INVALID_HID || H5Tequal(on_file.get(), type) > 0,
          "{}: elements of another type than the format's; the file is damaged", t.what);
  t.element_bytes = H5Tget_size(on_file.get());
  const Handle space = checked(H5Dget_space(t.data.get()), t.what);
  require(H5Sis_simple(space.get()) > 0 &&
              H5Sget_simple_extent_ndims(space.get()) == static_cast<int>(num_dims),
          "{}: not {} dimensions; the file is damaged", t.what, num_dims);
  hsize_t extents[max_dims] = {};
  check(H5Sget_simple_extent_dims(space.get(), extents, nullptr), t.what);
  for (std::size_t dim = 0; dim < num_dims; ++dim) {
    // No dimension can exceed the file, which also rules out overflow below. Layers times heads
    // without any position may.
    require(extents[dim] <= static_cast<hsize_t>(file_bytes),
            "{}: a dimension of {} does not fit a file of {} bytes; the file is damaged", t.what,
            extents[dim], file_bytes);
    t.extent.push_back(static_cast<std::int64_t>(extents[dim]));
  }
  check_place(t);
  t.checksums = read_u64_attribute(t.data.get(), checksum_attribute,
                                   fmt::format("{}, attribute \"{}\"", t.what, checksum_attribute));
  return t;
}

/// A table's bytes lie in the file, all of them and nothing else.
void CheckpointReader::Impl::check_place(const Table& t) const {
  const Handle creation = checked(H5Dget_create_plist(t.data.get()), t.what);
  require(
      H5Pget_layout(creation.get()) == H5D_CONTIGUOUS && H5Pget_external_count(creation.get()) == 0,
      "{}: not stored contiguously in this file; the file is damaged", t.what);
  std::int64_t bytes = static_cast<std::int64_t>(t.element_bytes);
  require(bytes > 0 && bytes <= file_bytes, "{}: elements of {} bytes; the file is damaged", t.what,
          bytes);
  if (std::find(t.extent.begin(), t.extent.end(), 0) != t.extent.end()) return;
  for (const std::int64_t extent : t.extent) {
    require(extent <= file_bytes / bytes, "{}: larger than the file of {} bytes; it is damaged",
            t.what, file_bytes);
    bytes *= extent;
  }
  const haddr_t offset = H5Dget_offset(t.data.get());
  require(offset != HADDR_UNDEF &&
              H5Dget_storage_size(t.data.get()) == static_cast<hsize_t>(bytes) &&
              offset <= static_cast<haddr_t>(file_bytes - bytes),
          "{}: its {} bytes are not all in the file of {} bytes; the file is truncated or damaged",
          t.what, bytes, file_bytes);
}

template <class T>
std::vector<T> CheckpointReader::Impl::read(const Table& t, hid_t type) const {
  std::int64_t elements = 1;
  for (const std::int64_t extent : t.extent) elements *= extent;
  std::vector<T> all(static_cast<std::size_t>(elements));
  if (elements > 0) {
    check(H5Dread(t.data.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, all.data()), t.what);
  }
  return all;
}

void CheckpointReader::Impl::compare_whole(const Table& t, std::span<const std::byte> bytes) const {
  require(t.checksums.size() == 1 && t.checksums[0] == checksum_of(bytes),
          "{}: checksum {:016x}, must be {:016x}; the file is damaged", t.what, checksum_of(bytes),
          t.checksums.empty() ? 0 : t.checksums[0]);
}

template <class T>
void CheckpointReader::Impl::compare(const Table& t, const std::vector<T>& all,
                                     PartCount count) const {
  std::int64_t rows = 0;
  for (const PartCounts& part : counts) {
    require(part[count] >= 0 && part[count] <= t.extent[0] - rows,
            "{}: its parts do not add up to {} rows; the file is damaged", t.what, t.extent[0]);
    rows += part[count];
  }
  require(rows == t.extent[0] && t.checksums.size() == counts.size(),
          "{}: its parts do not add up to {} rows; the file is damaged", t.what, t.extent[0]);
  if (all.empty()) return;
  const std::size_t row = all.size() / static_cast<std::size_t>(rows);
  std::size_t at = 0;
  for (std::size_t part = 0; part < counts.size(); ++part) {
    const std::size_t elements = static_cast<std::size_t>(counts[part][count]) * row;
    const std::uint64_t found = checksum_of(std::as_bytes(std::span(all).subspan(at, elements)));
    require(found == t.checksums[part],
            "{}, part {}: checksum {:016x}, must be {:016x}; the file is damaged", t.what, part,
            found, t.checksums[part]);
    at += elements;
  }
}

void CheckpointReader::Impl::read_state() {
  const Table state = table("state", 0, H5I_INVALID_HID);
  const Handle text = checked(H5Dget_type(state.data.get()), state.what);
  require(H5Tget_class(text.get()) == H5T_STRING && H5Tis_variable_str(text.get()) == 0,
          "{}: not a string of fixed length; the file is damaged", state.what);
  contents.state.resize(state.element_bytes);
  check(H5Dread(state.data.get(), text.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, contents.state.data()),
        state.what);
  compare_whole(state, std::as_bytes(std::span(contents.state)));

  const Table parts = table("parts", 2, H5T_STD_I64LE);
  const auto numbers = read<std::int64_t>(parts, H5T_NATIVE_INT64);
  compare_whole(parts, std::as_bytes(std::span(numbers)));
  require(parts.extent[0] > 0 && parts.extent[1] == num_part_counts,
          "{}: of another shape than the format's; the file is damaged", parts.what);
  counts.resize(static_cast<std::size_t>(parts.extent[0]));
  std::memcpy(counts.data(), numbers.data(), numbers.size() * sizeof(std::int64_t));
  for (const PartCounts& part : counts) contents.sequences_of.push_back(part[part_sequences]);

  const Table pending = table("pending", 1, H5T_STD_I64LE);
  contents.pending = read<std::int64_t>(pending, H5T_NATIVE_INT64);
  compare_whole(pending, std::as_bytes(std::span(contents.pending)));
  const Table loads = table("expert_loads", 2, H5T_STD_I64LE);
  contents.expert_loads = read<std::int64_t>(loads, H5T_NATIVE_INT64);
  compare_whole(loads, std::as_bytes(std::span(contents.expert_loads)));
  contents.num_experts = static_cast<int>(loads.extent[1]);
}

void CheckpointReader::Impl::read_sequences() {
  const Table sequences = table("sequences", 2, H5T_STD_I64LE);
  require(sequences.extent[1] == sequence_fields,
          "{}: of another shape than the format's; the file is damaged", sequences.what);
  const auto numbers = read<std::int64_t>(sequences, H5T_NATIVE_INT64);
  compare(sequences, numbers, part_sequences);
  contents.sequences.resize(static_cast<std::size_t>(sequences.extent[0]));
  static_assert(sizeof(CheckpointSequence) == sequence_fields * sizeof(std::int64_t));
  if (!numbers.empty()) {
    std::memcpy(static_cast<void*>(contents.sequences.data()), numbers.data(),
                numbers.size() * sizeof(std::int64_t));
  }
  const Table token_table = table("tokens", 1, H5T_STD_I32LE);
  tokens = read<std::int32_t>(token_table, H5T_NATIVE_INT32);
  compare(token_table, tokens, part_tokens);
  const Table logprob_table = table("logprobs", 1, H5T_IEEE_F32LE);
  logprobs = read<float>(logprob_table, H5T_NATIVE_FLOAT);
  compare(logprob_table, logprobs, part_logprobs);
  const Table top_table = table("tops", 1, H5T_STD_U64LE);
  tops = read<std::uint64_t>(top_table, H5T_NATIVE_UINT64);
  compare(top_table, tops, part_tops);

  keys = table("keys", 4, H5I_INVALID_HID);
  values = table("values", 4, H5I_INVALID_HID);
  const Handle type = checked(H5Dget_type(keys.data.get()), keys.what);
  const Handle value_type = checked(H5Dget_type(values.data.get()), values.what);
  contents.dtype = dtype_of(type.get(), keys.what);
  kv_type = file_type(contents.dtype);
  require(values.extent == keys.extent && H5Tequal(type.get(), value_type.get()) > 0,
          "{}: of another shape than keys; the file is damaged", values.what);
  contents.num_layers = static_cast<int>(keys.extent[0]);
  contents.num_kv_heads = static_cast<int>(keys.extent[2]);
  contents.head_dim = static_cast<int>(keys.extent[3]);
  const Table sums = table("kv_checksums", 3, H5T_STD_U64LE);
  require(sums.extent[1] == contents.num_layers && sums.extent[2] == kv_checksum_fields,
          "{}: of another shape than the format's; the file is damaged", sums.what);
  kv_checksums = read<std::uint64_t>(sums, H5T_NATIVE_UINT64);
  compare(sums, kv_checksums, part_pieces);
}

/// What a sequence goes on from is a beginning before it, of the same rank and of as many
/// positions.
void CheckpointReader::Impl::check_beginning(std::size_t sequence) const {
  const CheckpointSequence& s = contents.sequences[sequence];
  bool good = s.beginning == -1 && s.first == 0;
  const std::int64_t before = static_cast<std::int64_t>(sequence) - first_of_rank[sequence];
  if (s.beginning >= 0 && s.beginning < before) {
    const CheckpointSequence& from =
        contents.sequences[static_cast<std::size_t>(first_of_rank[sequence] + s.beginning)];
    good = from.is_beginning() && s.first == from.positions();
  }
  require(good, "cannot read {}: request {} goes on from what is no beginning; the file is damaged",
          path, s.request);
}

/// Adds up what the sequences say they have and compares with what is there.
void CheckpointReader::Impl::check_sequences() {
  PartCounts sum{};
  const std::int64_t limit[] = {0,
                                static_cast<std::int64_t>(tokens.size()),
                                static_cast<std::int64_t>(logprobs.size()),
                                keys.extent[1],
                                0,
                                static_cast<std::int64_t>(tops.size())};
  for (std::size_t rank = 0; rank < counts.size(); ++rank) {
    const auto first = static_cast<std::int64_t>(first_of_rank.size());
    first_of_rank.insert(first_of_rank.end(),
                         static_cast<std::size_t>(counts[rank][part_sequences]), first);
  }
  for (std::size_t i = 0; i < contents.sequences.size(); ++i) {
    const CheckpointSequence& s = contents.sequences[i];
    check_beginning(i);
    require(s.request >= CheckpointSequence::shared_beginning && s.generated >= 0 &&
                s.logprobs >= 0 && s.cached >= 0 && s.tops >= 0 &&
                s.tops <= limit[part_tops] - sum[part_tops] &&
                s.generated <= limit[part_tokens] - sum[part_tokens] &&
                s.logprobs <= limit[part_logprobs] - sum[part_logprobs] &&
                s.cached <= limit[part_positions] - sum[part_positions],
            "cannot read {}: request {}'s tokens or positions are not all there; the file is "
            "damaged",
            path, s.request);
    first_token.push_back(sum[part_tokens]);
    first_logprob.push_back(sum[part_logprobs]);
    first_top.push_back(sum[part_tops]);
    first_position.push_back(sum[part_positions]);
    first_piece.push_back(sum[part_pieces]);
    sum[part_tokens] += s.generated;
    sum[part_logprobs] += s.logprobs;
    sum[part_tops] += s.tops;
    sum[part_positions] += s.cached;
    sum[part_pieces] += s.num_pieces();
  }
  const auto pieces = static_cast<std::int64_t>(kv_checksums.size() / kv_checksum_fields);
  require(sum[part_tokens] == limit[part_tokens] && sum[part_logprobs] == limit[part_logprobs] &&
              sum[part_tops] == limit[part_tops] && sum[part_positions] == limit[part_positions] &&
              sum[part_pieces] * contents.num_layers == pieces,
          "cannot read {}: its sequences do not account for all that is in it; the file is damaged",
          path);
}

void CheckpointReader::Impl::read_kv(const Table& t, int layer, std::int64_t first,
                                     std::int64_t count, std::uint64_t expected,
                                     std::span<std::byte> destination) const {
  const std::string what =
      fmt::format("{}, layer {}, positions {} to {}", t.what, layer, first, first + count - 1);
  require(destination.size() == static_cast<std::size_t>(count * contents.row_bytes()),
          "internal: {} bytes for {} positions", destination.size(), count);
  const hsize_t start[] = {static_cast<hsize_t>(layer), static_cast<hsize_t>(first), 0, 0};
  const hsize_t extent[] = {1, static_cast<hsize_t>(count), static_cast<hsize_t>(t.extent[2]),
                            static_cast<hsize_t>(t.extent[3])};
  const Handle space = checked(H5Dget_space(t.data.get()), what);
  check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start, nullptr, extent, nullptr), what);
  const hsize_t elements = extent[1] * extent[2] * extent[3];
  const Handle memory = checked(H5Screate_simple(1, &elements, nullptr), what);
  check(H5Dread(t.data.get(), kv_type.get(), memory.get(), space.get(), H5P_DEFAULT,
                destination.data()),
        what);
  const std::uint64_t found = checksum_of(destination);
  require(found == expected, "{}: checksum {:016x}, must be {:016x}; the file is damaged", what,
          found, expected);
}

CheckpointReader::CheckpointReader(const std::string& path) : impl_(std::make_unique<Impl>()) {
  prepare_hdf5();
  impl_->path = path;
  impl_->open();
  impl_->read_state();
  impl_->read_sequences();
  impl_->check_sequences();
}

CheckpointReader::~CheckpointReader() = default;

const std::string& CheckpointReader::path() const {
  return impl_->path;
}
const CheckpointContents& CheckpointReader::contents() const {
  return impl_->contents;
}
std::int64_t CheckpointReader::bytes() const {
  return impl_->file_bytes;
}

std::span<const std::int32_t> CheckpointReader::tokens_of(std::size_t sequence) const {
  return std::span(impl_->tokens)
      .subspan(static_cast<std::size_t>(impl_->first_token.at(sequence)),
               static_cast<std::size_t>(impl_->contents.sequences[sequence].generated));
}

std::span<const float> CheckpointReader::logprobs_of(std::size_t sequence) const {
  return std::span(impl_->logprobs)
      .subspan(static_cast<std::size_t>(impl_->first_logprob.at(sequence)),
               static_cast<std::size_t>(impl_->contents.sequences[sequence].logprobs));
}

std::vector<SampledToken> CheckpointReader::tops_of(std::size_t sequence) const {
  const auto count = static_cast<std::size_t>(impl_->contents.sequences.at(sequence).tops);
  std::vector<SampledToken> tops(count);
  if (count > 0) {
    std::memcpy(static_cast<void*>(tops.data()), impl_->tops.data() + impl_->first_top[sequence],
                count * sizeof(tops[0]));
  }
  return tops;
}

std::vector<std::size_t> CheckpointReader::chain_of(std::size_t sequence) const {
  std::vector<std::size_t> chain;
  for (auto at = static_cast<std::int64_t>(sequence); at >= 0;) {
    const auto index = static_cast<std::size_t>(at);
    chain.push_back(index);
    const std::int64_t beginning = impl_->contents.sequences.at(index).beginning;
    at = beginning < 0 ? -1 : impl_->first_of_rank[index] + beginning;
  }
  std::reverse(chain.begin(), chain.end());
  return chain;
}

bool CheckpointReader::is_complete(std::size_t sequence) const {
  return std::ranges::all_of(chain_of(sequence), [this](std::size_t each) {
    return impl_->contents.sequences[each].complete != 0;
  });
}

void CheckpointReader::read_piece(std::size_t sequence, int layer, std::int64_t piece,
                                  std::span<std::byte> keys, std::span<std::byte> values) {
  const Impl& impl = *impl_;
  const CheckpointSequence& s = impl.contents.sequences.at(sequence);
  const auto [first, count] = piece_of(s, piece);
  require(layer >= 0 && layer < impl.contents.num_layers && piece >= 0 && count > 0,
          "internal: there is no piece {} of layer {}", piece, layer);
  const std::int64_t row = impl.first_piece[sequence] + piece;
  const auto at =
      static_cast<std::size_t>(row * impl.contents.num_layers + layer) * kv_checksum_fields;
  const std::int64_t position = impl.first_position[sequence] + first;
  impl.read_kv(impl.keys, layer, position, count, impl.kv_checksums[at], keys);
  impl.read_kv(impl.values, layer, position, count, impl.kv_checksums[at + 1], values);
}

void CheckpointReader::verify(std::size_t first, std::size_t stride) {
  std::vector<std::byte> keys;
  std::vector<std::byte> values;
  for (std::size_t s = first; s < impl_->contents.sequences.size(); s += stride) {
    const CheckpointSequence& sequence = impl_->contents.sequences[s];
    if (sequence.complete == 0) continue;
    for (std::int64_t piece = 0; piece < sequence.num_pieces(); ++piece) {
      const auto count = piece_of(sequence, piece).count;
      keys.resize(static_cast<std::size_t>(count * impl_->contents.row_bytes()));
      values.resize(keys.size());
      for (int layer = 0; layer < impl_->contents.num_layers; ++layer) {
        read_piece(s, layer, piece, keys, values);
      }
    }
  }
}

}  // namespace atl::io
