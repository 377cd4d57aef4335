#include "compute/weight_cut.hpp"

#include <cstring>

#include "compute/error.hpp"

namespace atl::compute {

namespace {

/// Rows of own query heads, `per_head` each.
WeightCut::Range of_query_heads(const OwnHeads& own, std::int64_t per_head) {
  return {own.first_head() * per_head, own.num_heads * per_head};
}

/// Rows of q, then k, then v, or of queries and whole latents, or of a vector over them.
std::vector<WeightCut::Range> rows_of_heads(const ModelShape& shape, const Part& part,
                                            const WeightInfo& info) {
  const OwnHeads own = own_heads(shape, part.attention, info.layer);
  const std::int64_t d = shape.head_dim;
  const WeightCut::Range q = of_query_heads(own, d);
  // KV heads of a part follow one another, as its query heads do.
  const std::int64_t kv_head = own.groups.front().kv_head;
  const auto of_kv_heads = [&](std::int64_t before, std::int64_t per_head) {
    return WeightCut::Range{before + kv_head * per_head, own.num_kv_heads() * per_head};
  };
  switch (info.id) {
    case Weight::q_norm:
    case Weight::q_up:
      return {q};
    case Weight::k_norm:
      return {of_kv_heads(0, d)};
    case Weight::sinks:
      return {of_query_heads(own, 1)};
    case Weight::k_up:
      return {of_query_heads(own, d - shape.latent.rope)};
    case Weight::v_up:
      return {of_query_heads(own, shape.values_dim())};
    default:
      break;
  }
  if (shape.latent.used()) return {q, {shape.q_width(), shape.latent.width()}};
  const std::int64_t k_rows = shape.attention(info.layer).num_kv_heads * d;
  return {q, of_kv_heads(shape.q_width(), d),
          of_kv_heads(shape.q_width() + k_rows, shape.values_dim())};
}

std::vector<WeightCut::Range> rows_of_output(const ModelShape& shape, const AttentionShare& share) {
  if (share.output != OutputCut::columns) return {{0, shape.hidden}};
  const std::int64_t width = shape.hidden / share.members;
  return {{share.place * width, width}};
}

void cut_output(const ModelShape& shape, const AttentionShare& share, WeightCut& cut) {
  cut.rows = rows_of_output(shape, share);
  if (is_sum(share.output)) {
    const OwnHeads own = own_heads(shape, share);
    cut.cols = {std::int64_t{own.first_head()} * own.value_dim, own.heads_width()};
  }
}

}  // namespace

std::int64_t WeightCut::num_rows() const {
  std::int64_t count = 0;
  for (const Range& range : rows) count += range.count;
  return count;
}

WeightCut cut_of(const ModelShape& shape, const Part& part, const WeightInfo& info) {
  WeightCut cut{{{0, info.rows}}, {0, info.cols}};
  switch (info.cut) {
    case Cut::heads_of_rows:
      if (part.attention.shared()) cut.rows = rows_of_heads(shape, part, info);
      break;
    case Cut::heads_of_columns:
      if (part.attention.shared()) cut_output(shape, part.attention, cut);
      break;
    case Cut::output_rows:
      if (part.attention.shared()) cut.rows = rows_of_output(shape, part.attention);
      break;
    case Cut::inner_rows:
    case Cut::inner_columns:
      // Inner rows travel, so that `down` adds over all of them: it is cut along its results.
      if (info.per_expert) {
        const ExpertShare& share = part.expert_share;
        const std::int64_t rows = info.rows / share.members;
        cut.rows = {{share.place * rows, rows}};
      }
      break;
    case Cut::none:
      break;
  }
  return cut;
}

WeightInfo own_weight(const ModelShape& shape, const Part& part, const WeightInfo& info) {
  const WeightCut cut = cut_of(shape, part, info);
  WeightInfo own = info;
  own.rows = cut.num_rows();
  own.cols = cut.cols.count;
  return own;
}

namespace {

/// Where the bytes of a part's columns lie in a row of the whole tensor.
struct ByteRange {
  std::size_t first = 0;
  std::size_t count = 0;
  std::size_t whole_row = 0;
};

/// Copies the cut's rows from `from` to `to`, and returns what is behind them there.
char* copy_rows(const WeightCut& cut, const ByteRange& bytes, const void* from, char* to) {
  const char* columns = static_cast<const char*>(from) + bytes.first;
  for (const WeightCut::Range& range : cut.rows) {
    for (std::int64_t r = range.first; r < range.first + range.count; ++r, to += bytes.count) {
      std::memcpy(to, columns + static_cast<std::size_t>(r) * bytes.whole_row, bytes.count);
    }
  }
  return to;
}

/// own_tensor() of codes.
HostTensor own_codes(const WeightCut& cut, const WeightInfo& info, const HostTensor& tensor,
                     AlignedBuffer& buffer) {
  const Coding& coding = tensor.coding;
  const std::int64_t first = cut.cols.first;
  const bool whole_words = coding.code == Code::fp8 || first % 8 == 0;
  require(first % coding.group == 0 && whole_words,
          "cannot cut weight {} of layer {} at column {}: it is kept as {} in groups of {}; import "
          "the model without --weights keep, or take another division",
          name_of(info.id), info.layer, first, name_of(coding.code), coding.group);
  const auto bytes = [](std::int64_t begin, std::int64_t count, std::int64_t all) {
    return ByteRange{static_cast<std::size_t>(begin), static_cast<std::size_t>(count),
                     static_cast<std::size_t>(all)};
  };
  const ByteRange codes =
      bytes(coding.row_bytes(first), coding.row_bytes(cut.cols.count), coding.row_bytes(info.cols));
  const std::int64_t scale = coding.scale_bytes();
  const ByteRange scales =
      bytes(first / coding.group * scale, coding.groups(cut.cols.count) * scale,
            coding.groups(info.cols) * scale);
  const auto rows = static_cast<std::size_t>(cut.num_rows());
  buffer = AlignedBuffer(rows * (codes.count + scales.count));
  HostTensor own{buffer.data(), tensor.dtype, cut.num_rows(), cut.cols.count, coding, nullptr};
  char* behind = copy_rows(cut, codes, tensor.data, buffer.as<char>());
  own.scales = behind;
  copy_rows(cut, scales, tensor.scales, behind);
  return own;
}

}  // namespace

HostTensor own_tensor(const ModelShape& shape, const Part& part, const WeightInfo& info,
                      const HostTensor& tensor, AlignedBuffer& buffer) {
  const WeightCut cut = cut_of(shape, part, info);
  if (cut.num_rows() == info.rows && cut.cols.count == info.cols) return tensor;
  if (tensor.coding.used()) return own_codes(cut, info, tensor, buffer);
  const std::size_t element = size_of(tensor.dtype);
  const ByteRange bytes{static_cast<std::size_t>(cut.cols.first) * element,
                        static_cast<std::size_t>(cut.cols.count) * element,
                        static_cast<std::size_t>(info.cols) * element};
  buffer = AlignedBuffer(static_cast<std::size_t>(cut.num_rows()) * bytes.count);
  copy_rows(cut, bytes, tensor.data, buffer.as<char>());
  return {buffer.data(), tensor.dtype, cut.num_rows(), cut.cols.count};
}

}  // namespace atl::compute
