#include "compute/weight_cut.hpp"

#include <cstring>

namespace atl::compute {

namespace {

/// Rows of q, then k, then v, or those of a norm over one of them.
std::vector<WeightCut::Range> rows_of_heads(const ModelShape& shape, const Part& part,
                                            Weight weight) {
  const OwnHeads own = own_heads(shape, part.attention);
  const std::int64_t d = shape.head_dim;
  // KV heads of a part follow one another, as its query heads do.
  const std::int64_t first_kv = own.groups.front().kv_head * d;
  const WeightCut::Range q{own.first_head() * d, own.q_width()};
  const WeightCut::Range k{first_kv, own.kv_width()};
  if (weight == Weight::q_norm) return {q};
  if (weight == Weight::k_norm) return {k};
  return {q,
          {shape.q_width() + first_kv, own.kv_width()},
          {shape.q_width() + shape.kv_width() + first_kv, own.kv_width()}};
}

void cut_output(const ModelShape& shape, const AttentionShare& share, WeightCut& cut) {
  if (share.output == OutputCut::columns) {
    const std::int64_t width = shape.hidden / share.members;
    cut.rows = {{share.place * width, width}};
  } else if (is_sum(share.output)) {
    const OwnHeads own = own_heads(shape, share);
    cut.cols = {std::int64_t{own.first_head()} * shape.head_dim, own.q_width()};
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
      if (part.attention.shared()) cut.rows = rows_of_heads(shape, part, info.id);
      break;
    case Cut::heads_of_columns:
      if (part.attention.shared()) cut_output(shape, part.attention, cut);
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

HostTensor own_tensor(const ModelShape& shape, const Part& part, const WeightInfo& info,
                      const HostTensor& tensor, AlignedBuffer& buffer) {
  const WeightCut cut = cut_of(shape, part, info);
  if (cut.num_rows() == info.rows && cut.cols.count == info.cols) return tensor;
  const std::size_t element = size_of(tensor.dtype);
  const std::size_t whole_row = static_cast<std::size_t>(info.cols) * element;
  const std::size_t own_row = static_cast<std::size_t>(cut.cols.count) * element;
  buffer = AlignedBuffer(static_cast<std::size_t>(cut.num_rows()) * own_row);
  const char* from =
      static_cast<const char*>(tensor.data) + static_cast<std::size_t>(cut.cols.first) * element;
  char* to = buffer.as<char>();
  for (const WeightCut::Range& range : cut.rows) {
    for (std::int64_t r = range.first; r < range.first + range.count; ++r, to += own_row) {
      std::memcpy(to, from + static_cast<std::size_t>(r) * whole_row, own_row);
    }
  }
  return {buffer.data(), tensor.dtype, cut.num_rows(), cut.cols.count};
}

}  // namespace atl::compute
