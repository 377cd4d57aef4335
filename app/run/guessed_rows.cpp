#include "app/run/guessed_rows.hpp"

#include <algorithm>

namespace atl {

GuessedRows::GuessedRows(const ModelShape& shape, const LayerRange& layers, int max_chunks,
                         const compute::AttentionShare& share)
    : layers_(layers),
      top_k_(static_cast<std::size_t>(shape.top_k)),
      place_(share.place),
      members_(share.members),
      numbers_(numbers_of_layers(moe_layers_of(shape), shape.num_layers)),
      guesses_(static_cast<std::size_t>(max_chunks)),
      chosen_(static_cast<std::size_t>(max_chunks) * numbers_.size()) {}

void GuessedRows::prepare(Batcher& batch, int first_slot) {
  for (int c = 0; c < batch.num_chunks(); ++c) {
    guesses_[static_cast<std::size_t>(first_slot + c)] = static_cast<char>(std::ranges::any_of(
        batch.chunk(c).head, [](const HeadRow& head) { return head.ahead > 0; }));
  }
}

RoutingRecord::Place GuessedRows::place(int chunk, int layer, std::size_t tokens) {
  if (guesses_[static_cast<std::size_t>(chunk)] == 0) return {};
  Chosen& chosen = chosen_[index(chunk, layer)];
  if (chosen.experts.size() < tokens * top_k_) {
    chosen.experts.resize(tokens * top_k_);
    chosen.weights.resize(tokens * top_k_);
  }
  return {chosen.experts.data(), chosen.weights.data()};
}

void GuessedRows::take_back(std::span<const RejectedRow> rejected, Batcher& batch, int first_slot,
                            Driver& driver) const {
  for (const RejectedRow& each : rejected) {
    const auto rows = static_cast<std::int64_t>(batch.chunk(each.chunk).tokens.size());
    const RowRange own = rows_of_member(rows, place_, members_);
    if (each.row < own.first || each.row >= own.end) continue;
    for (int layer = layers_.first; layer < layers_.end; ++layer) {
      if (numbers_[static_cast<std::size_t>(layer)] < 0) continue;
      const Chosen& chosen = chosen_[index(first_slot + each.chunk, layer)];
      const auto first = static_cast<std::size_t>(each.row - own.first) * top_k_;
      driver.take_back(layer, std::span(chosen.experts).subspan(first, top_k_));
    }
  }
}

}  // namespace atl
