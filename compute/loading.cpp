#include "compute/loading.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "compute/convert.hpp"
#include "compute/cpu/kernels.hpp"
#include "compute/error.hpp"

namespace atl::compute {

namespace {

/// Tables of kinds are as long as they should be, and their entries lead to what is there.
void check_kinds(const ModelShape& shape) {
  require(shape.attentions.empty() ||
              shape.attention_of.size() == static_cast<std::size_t>(shape.num_layers),
          "attention_of has {} entries for {} layers", shape.attention_of.size(), shape.num_layers);
  for (const std::uint8_t kind : shape.attention_of) {
    require(kind < std::max<std::size_t>(shape.attentions.size(), 1),
            "there is no kind {} of attention", kind);
  }
  for (const AttentionKind& kind : shape.attentions) {
    require(kind.num_kv_heads > 0 && kind.num_kv_heads <= shape.num_kv_heads &&
                shape.num_heads % kind.num_kv_heads == 0,
            "cannot share {} key/value heads among {} query heads", kind.num_kv_heads,
            shape.num_heads);
    require(kind.rope >= 0 && static_cast<std::size_t>(kind.rope) < shape.num_ropes(),
            "there is no rope {}", kind.rope);
  }
  require(shape.latent.used() || shape.values_dim() <= shape.head_dim,
          "cannot attend with values of {} dimensions and keys of {}", shape.values_dim(),
          shape.head_dim);
}

}  // namespace

void check_options(const BackendOptions& options, int largest_head_dim) {
  const ModelShape& shape = options.shape;
  require(shape.head_dim > 0 && shape.head_dim % 2 == 0 && shape.head_dim <= largest_head_dim,
          "cannot compute attention with head_dim {} (the kernels take even numbers up to {})",
          shape.head_dim, largest_head_dim);
  require(
      shape.num_kv_heads > 0 && shape.num_heads > 0 && shape.num_heads % shape.num_kv_heads == 0,
      "cannot share {} key/value heads among {} query heads (not a divisor)", shape.num_kv_heads,
      shape.num_heads);
  check_kinds(shape);
  require(options.page_tokens > 0, "cannot use KV pages of {} tokens", options.page_tokens);
  require(shape.hidden > 0 && shape.vocab > 0 && shape.num_layers > 0 && shape.max_positions > 0,
          "cannot set up a model with hidden {}, vocabulary {}, {} layers and {} positions",
          shape.hidden, shape.vocab, shape.num_layers, shape.max_positions);
  require(shape.vocab <= max_vocab, "cannot sample from a vocabulary of {} tokens (at most {})",
          shape.vocab, max_vocab);
  require(shape.layer_is_dense.size() == static_cast<std::size_t>(shape.num_layers),
          "layer_is_dense has {} entries for {} layers", shape.layer_is_dense.size(),
          shape.num_layers);
  require(options.num_threads >= 1 && options.max_chunk_tokens >= 1 && options.num_pages >= 0,
          "cannot run with {} threads, chunks of {} tokens and {} pages", options.num_threads,
          options.max_chunk_tokens, options.num_pages);
  require(shape.num_experts == 0 || (shape.top_k >= 1 && shape.top_k <= shape.num_experts),
          "cannot choose {} of {} experts", shape.top_k, shape.num_experts);
  const Part& part = options.part;
  require(part.first_layer >= 0 && part.first_layer < part.end_layer &&
              part.end_layer <= shape.num_layers,
          "a rank's part has layers {} to {}, the model has {} layers", part.first_layer,
          part.end_layer - 1, shape.num_layers);
  require(part.experts.size() == static_cast<std::size_t>(shape.num_layers),
          "a rank's part has experts of {} layers, the model has {} layers", part.experts.size(),
          shape.num_layers);
  require(part.places_of_layer.size() == static_cast<std::size_t>(shape.num_layers),
          "a rank's part says of {} layers where their experts are, the model has {} layers",
          part.places_of_layer.size(), shape.num_layers);
  const AttentionShare& share = part.attention;
  require(share.heads == share_attention(shape, share.members, share.place, share.output).heads,
          "member {} of {} that share attention has other heads than share_attention() gives it",
          share.place, share.members);
  require(
      !share.shared() || share.output != OutputCut::sum_bf16 || options.dtype == DType::bfloat16,
      "cannot send sums as bfloat16 where activations are {}; use --tp-sum float32, or --dtype "
      "bfloat16",
      name_of(options.dtype));
  share_experts(shape, part.expert_share.members, part.expert_share.place);
}

void place_attention(const BackendOptions& options, Chunk& chunk, AttentionPart part) {
  const AttentionShare& share = options.part.attention;
  if (!share.shared()) return;
  require(part != AttentionPart::all,
          "cannot compute attention that {} ranks share in one step (rows move in between)",
          share.members);
  const auto own = static_cast<std::int64_t>(chunk.tokens.size());
  require(chunk.first_own_row >= 0 && chunk.first_own_row + own <= chunk.all_rows &&
              chunk.all_rows <= options.most_attention_rows(),
          "rows {} to {} of {} are not in a chunk whose attention has at most {}",
          chunk.first_own_row, chunk.first_own_row + own, chunk.all_rows,
          options.most_attention_rows());
  const bool either = share.output == OutputCut::either;
  const bool by_columns = chunk.output == OutputCut::columns;
  require(either ? by_columns || chunk.output == OutputCut::rows : chunk.output == share.output,
          "cannot project attention's output by {} where ranks have it by {}",
          name_of(chunk.output), name_of(share.output));
  if (!by_columns && !either) return;
  // Own heads are one of the members' parts, or behind what comes for own rows: there are as many
  // rows for each member as any has, and so room for both.
  const std::int64_t before = by_columns ? share.place * chunk.all_rows : share.members * own;
  const std::int64_t row = options.shape.heads_width() / share.members *
                           static_cast<std::int64_t>(size_of(options.dtype));
  chunk.heads_send = static_cast<std::byte*>(chunk.heads_recv) + before * row;
}

void check_experts(const BackendOptions& options, const Chunk& chunk,
                   std::span<const RowBlock> blocks, ExpertPart part) {
  const ExpertShare& share = options.part.expert_share;
  if (!share.shared()) return;
  require(part != ExpertPart::all,
          "cannot compute experts that {} ranks share in one step (rows move in between)",
          share.members);
  std::int64_t rows = 0;
  for (const RowBlock& block : blocks) rows += block.num_rows;
  const bool own = part == ExpertPart::collect || part == ExpertPart::write;
  const std::int64_t first = own ? chunk.first_expert_row : 0;
  require(first >= 0 && first + rows <= chunk.all_expert_rows,
          "blocks of {} rows from {} on are not in a chunk whose experts have {}", rows, first,
          chunk.all_expert_rows);
}

BackendOptions options_of_chunk(const BackendOptions& options, int index) {
  BackendOptions of_chunk = options;
  if (!options.chunk_tokens.empty()) {
    const auto at = static_cast<std::size_t>(index) % options.chunk_tokens.size();
    of_chunk.max_chunk_tokens = options.chunk_tokens[at];
  }
  return of_chunk;
}

namespace {

/// Codes as elements of the tensor's type, in `buffer`.
HostTensor decoded(const HostTensor& tensor, AlignedBuffer& buffer) {
  const Coding& coding = tensor.coding;
  const auto row_bytes = coding.row_bytes(tensor.cols);
  const std::int64_t scales_bytes = coding.groups(tensor.cols) * coding.scale_bytes();
  const std::size_t element = size_of(tensor.dtype);
  buffer = AlignedBuffer(static_cast<std::size_t>(tensor.rows * tensor.cols) * element);
  std::vector<float> row(static_cast<std::size_t>(tensor.cols));
  for (std::int64_t r = 0; r < tensor.rows; ++r) {
    const auto* codes = static_cast<const std::byte*>(tensor.data) + r * row_bytes;
    const auto* scales = static_cast<const std::byte*>(tensor.scales) + r * scales_bytes;
    for (std::int64_t c = 0; c < tensor.cols; ++c) {
      row[static_cast<std::size_t>(c)] =
          number_at(coding.code, codes, c) * scale_at(coding.code, scales, c / coding.group);
    }
    from_float(row, buffer.as<char>() + static_cast<std::size_t>(r * tensor.cols) * element,
               tensor.dtype);
  }
  return {buffer.data(), tensor.dtype, tensor.rows, tensor.cols};
}

}  // namespace

const void* converted(const HostTensor& tensor, DType to, AlignedBuffer& buffer) {
  if (tensor.coding.used()) {
    AlignedBuffer elements;
    const HostTensor plain = decoded(tensor, elements);
    const void* result = converted(plain, to, buffer);
    if (result == plain.data) buffer = std::move(elements);
    return buffer.data();
  }
  if (tensor.dtype == to) return tensor.data;
  const CpuIsa isa = cpu_isa();
  const std::int64_t count = tensor.rows * tensor.cols;
  AlignedBuffer floats;
  const void* from = tensor.data;
  if (tensor.dtype != DType::float32) {
    floats = AlignedBuffer(static_cast<std::size_t>(count) * sizeof(float));
    kernels_for(tensor.dtype, isa).to_float(from, floats.as<float>(), count);
    from = floats.data();
  }
  buffer = AlignedBuffer(static_cast<std::size_t>(count) * size_of(to));
  kernels_for(to, isa).from_float(static_cast<const float*>(from), buffer.data(), count);
  return buffer.data();
}

const float* vector_as_floats(const BackendOptions& options, const HostTensor& tensor,
                              AlignedBuffer& rounded, AlignedBuffer& floats) {
  HostTensor vector = tensor;
  if (is_plain(options.shape)) {
    vector.data = converted(tensor, options.dtype, rounded);
    vector.dtype = options.dtype;
  }
  return static_cast<const float*>(converted(vector, DType::float32, floats));
}

}  // namespace atl::compute
