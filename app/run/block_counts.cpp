#include "app/run/block_counts.hpp"

#include <algorithm>

#include "app/run/twins.hpp"

namespace atl {

void GivenUp::add(float mass_of_choice) {
  ++choices;
  if (mass_of_choice <= 0) return;
  ++changed;
  mass += double{mass_of_choice};
}

BlockCounts::BlockCounts(const ModelShape& shape, std::int64_t block, int max_chunks, int place,
                         int members)
    : block_(block),
      num_experts_(static_cast<std::size_t>(shape.num_experts)),
      num_layers_(moe_layers_of(shape).size()),
      top_k_(static_cast<std::size_t>(shape.top_k)),
      index_of_layer_(numbers_of_layers(moe_layers_of(shape), shape.num_layers)),
      rows_(place, members) {
  chosen_.resize(static_cast<std::size_t>(max_chunks) * num_layers_);
}

RoutingRecord::Place BlockCounts::place(int chunk, int layer, std::size_t tokens) {
  const int number = index_of_layer_[static_cast<std::size_t>(layer)];
  if (number < 0) return {};
  Chosen& chosen = chosen_[index(chunk, static_cast<std::size_t>(number))];
  if (chosen.given_up.size() < tokens) {
    chosen.experts.resize(tokens * top_k_, -1);
    chosen.weights.resize(tokens * top_k_);
    chosen.given_up.resize(tokens);
  }
  return {chosen.experts.data(), chosen.weights.data(), chosen.given_up.data()};
}

void BlockCounts::take(Batcher& batch, int first_slot) {
  open_prompts(batch.sequences());
  rows_.for_each(batch, first_slot,
                 [this](int chunk, const compute::Segment& segment, auto, std::size_t request) {
                   append(chunk, segment, static_cast<std::int32_t>(request));
                 });
  for (const std::int32_t slot : batch.sequences().taken()) {
    const Sequence& sequence = batch.sequences().in_slot(slot);
    const auto found = open_.find(sequence.request);
    if (found == open_.end() || sequence.prefilling()) continue;
    close(found->second);
    open_.erase(found);
  }
}

/// A prompt is counted where all of it has run: a rank that has none of its rows counts it as done
/// all the same.
void BlockCounts::open_prompts(const Sequences& sequences) {
  for (const std::int32_t slot : sequences.taken()) {
    const Sequence& sequence = sequences.in_slot(slot);
    if (is_twin(sequence.request) || sequence.num_generated() > 0) continue;
    const auto [open, is_new] = open_.try_emplace(sequence.request);
    if (!is_new) continue;
    open->second.block = block_of(sequence.asked.line);
    open->second.prompt_length = sequence.prompt_length;
    open->second.counts.resize(num_layers_ * num_experts_);
  }
}

void BlockCounts::append(int chunk, const compute::Segment& segment, std::int32_t request) {
  if (is_twin(request)) return;
  const auto open = open_.find(request);
  for (std::size_t layer = 0; layer < num_layers_; ++layer) {
    const Chosen& chosen = chosen_[index(chunk, layer)];
    if (chosen.given_up.empty()) continue;  // another stage has the layer
    for (std::int32_t i = 0; i < segment.num_rows; ++i) {
      const auto row = static_cast<std::size_t>(segment.first_row + i);
      given_up_.add(chosen.given_up[row]);
      if (open == open_.end() || segment.first_position + i >= open->second.prompt_length) continue;
      for (std::size_t j = 0; j < top_k_; ++j) {
        const auto expert = static_cast<std::size_t>(chosen.experts[row * top_k_ + j]);
        ++open->second.counts[layer * num_experts_ + expert];
      }
    }
  }
}

/// Also of a prompt that has failed: which of its rows have run depends on nothing but the request.
void BlockCounts::finish(const std::vector<FinishedRequest>& finished) {
  for (const FinishedRequest& done : finished) {
    const auto found = open_.find(done.request);
    if (found == open_.end()) continue;
    close(found->second);
    open_.erase(found);
  }
}

void BlockCounts::close(const Open& open) {
  Block& block = blocks_[open.block];
  ++block.prompts;
  block.counts.resize(open.counts.size());
  for (std::size_t i = 0; i < open.counts.size(); ++i) block.counts[i] += open.counts[i];
}

std::int64_t BlockCounts::prompts(std::int64_t block) const {
  const auto found = blocks_.find(block);
  return found == blocks_.end() ? 0 : found->second.prompts;
}

std::vector<std::int64_t> BlockCounts::counts(std::int64_t block) const {
  const auto found = blocks_.find(block);
  if (found != blocks_.end()) return found->second.counts;
  return std::vector<std::int64_t>(num_layers_ * num_experts_);
}

void BlockCounts::forget(std::int64_t block) {
  blocks_.erase(blocks_.begin(), blocks_.upper_bound(block));
}

}  // namespace atl
