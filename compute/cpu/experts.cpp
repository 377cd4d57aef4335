// The CPU backend's experts: gated or plain MLPs over tiles of rows.

#include <algorithm>
#include <cmath>

#include "compute/cpu/expert_tiles.hpp"
#include "compute/cpu/operations.hpp"

namespace atl::compute {

void CpuLayers::MlpRows::clear(std::int64_t most) {
  // Products point into these, which must not move while they grow.
  in.clear();
  in.reserve(static_cast<std::size_t>(most));
  inner.clear();
  inner.reserve(static_cast<std::size_t>(most));
  out.clear();
  out.reserve(static_cast<std::size_t>(most));
  // A product has at least a row.
  up.clear();
  up.reserve(static_cast<std::size_t>(most));
  down.clear();
  down.reserve(static_cast<std::size_t>(most));
}

void CpuLayers::MlpRows::add(const CpuMlp& mlp, int rows, Finish finish) {
  const std::size_t first = in.size() - static_cast<std::size_t>(rows);
  add_up(mlp, first, rows);
  add_down(mlp, first, rows, finish);
}

void CpuLayers::MlpRows::add_up(const CpuMlp& mlp, std::size_t first, int rows) {
  const bool gated = !mlp.gate.empty();
  up.push_back({&mlp.up,
                gated ? &mlp.gate : nullptr,
                finish_of(shape->activation),
                rows,
                in.data() + first,
                inner.data() + first,
                {mlp.up_bias.as<float>(), mlp.gate_bias.as<float>(), shape->clamp_limit,
                 shape->clamp_alpha}});
}

void CpuLayers::MlpRows::add_down(const CpuMlp& mlp, std::size_t first, int rows, Finish finish) {
  down.push_back({&mlp.down,
                  nullptr,
                  finish,
                  rows,
                  inner.data() + first,
                  out.data() + first,
                  {mlp.down_bias.as<float>(), nullptr, 0, 0}});
}

template <class Then>
void CpuLayers::run_mlp(CpuChunk& chunk, const CpuMlp& mlp, int width, void* out,
                        const Then& then) {
  const std::int64_t at_once = gemm_->rows_at_once();
  const Finish finish = out == nullptr ? Finish::add : Finish::rounded;
  for (std::int64_t first = 0; first < chunk.num_tokens(); first += at_once) {
    const std::int64_t end = std::min(first + at_once, chunk.num_tokens());
    mlp_.clear(at_once);
    for (std::int64_t t = first; t < end; ++t) {
      mlp_.in.push_back(row(work_.h, t, shape_.hidden));
      mlp_.inner.push_back(row(work_.inner, t - first, width));
      mlp_.out.push_back(out == nullptr ? static_cast<void*>(x_row(chunk, t))
                                        : row(out, t - first, shape_.hidden));
      const int rows = static_cast<int>((t - first) % tile_rows + 1);
      if (rows == tile_rows || t + 1 == end) mlp_.add(mlp, rows, finish);
    }
    gemm_->run(mlp_.up);
    gemm_->run(mlp_.down);
    then(first, end);
  }
}

void CpuLayers::mlp(CpuChunk& chunk, int layer) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  norm(chunk, weights.ffn_norm, work_.h.data());
  run_mlp(chunk, weights.dense, shape_.intermediate, nullptr, [](std::int64_t, std::int64_t) {});
}

void CpuLayers::shared_expert(CpuChunk& chunk, int layer) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  norm(chunk, weights.ffn_norm, work_.h.data());
  const auto run = [&](void* out, const auto& then) {
    run_mlp(chunk, weights.shared, shape_.shared_intermediate, out, then);
  };
  if (!shape_.shared_gate) return run(nullptr, [](std::int64_t, std::int64_t) {});
  float* logits = work_.shared_weights.as<float>();
  gemm_->run(weights.shared_router, work_.h.data(), chunk.num_tokens(), logits, Finish::float32);
  run(work_.shared_out.data(), [&](std::int64_t first, std::int64_t end) {
    for (std::int64_t t = first; t < end; ++t) {
      const auto slot = static_cast<std::int32_t>(t - first);
      const float weight = 1.0F / (1.0F + std::exp(-logits[t]));
      kernels_.merge(x_row(chunk, t), work_.shared_out.data(), &slot, &weight, 1, shape_.hidden);
    }
  });
}

void CpuLayers::experts(CpuChunk& chunk, int layer, std::span<const RowBlock> blocks,
                        ExpertPart part) {
  if (options_.part.expert_share.shared()) return shared_experts(chunk, layer, blocks, part);
  if (part == ExpertPart::collect || part == ExpertPart::write) return;
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const int width = shape_.moe_intermediate;
  const int hidden = shape_.hidden;
  std::int64_t at_once = gemm_->rows_at_once();
  if (part != ExpertPart::all) {
    at_once = 0;
    for (const RowBlock& block : blocks) at_once += block.num_rows;
    if (part == ExpertPart::up) chunk.reserve_inner(at_once * width * element_bytes_);
  }
  const AlignedBuffer& inner = part == ExpertPart::all ? work_.inner : chunk.inner;
  const auto run = [&] {
    if (part != ExpertPart::down) gemm_->run(mlp_.up);
    if (part != ExpertPart::up) gemm_->run(mlp_.down);
    mlp_.clear(at_once);
  };
  mlp_.clear(at_once);
  for_tiles(blocks, [&](const ExpertTile& tile) {
    if (static_cast<std::int64_t>(mlp_.in.size()) + tile.rows > at_once) run();
    for_pieces(blocks, tile, [&](const RowBlock& block, int begin, int count) {
      for (int i = begin; i < begin + count; ++i) {
        const auto at = static_cast<std::int64_t>(mlp_.in.size());
        mlp_.in.push_back(row(const_cast<void*>(block.in), i, hidden));
        mlp_.inner.push_back(row(inner, at, width));
        mlp_.out.push_back(row(block.out, i, hidden));
      }
    });
    mlp_.add(weights.experts[static_cast<std::size_t>(tile.expert)], tile.rows, Finish::rounded);
  });
  run();
}

}  // namespace atl::compute
