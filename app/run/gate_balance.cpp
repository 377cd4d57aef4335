#include "app/run/gate_balance.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "app/run/computed_rows.hpp"

namespace atl {

using nlohmann::json;

namespace {

/// The busiest expert's tokens over its layer's mean, on average over layers.
double busiest_of(std::span<const std::int64_t> counts, std::size_t num_experts) {
  double sum = 0;
  int layers = 0;
  for (std::size_t first = 0; first < counts.size(); first += num_experts) {
    const auto layer = counts.subspan(first, num_experts);
    const auto all = std::accumulate(layer.begin(), layer.end(), std::int64_t{0});
    if (all == 0) continue;
    sum += static_cast<double>(*std::max_element(layer.begin(), layer.end())) *
           static_cast<double>(num_experts) / static_cast<double>(all);
    ++layers;
  }
  return layers == 0 ? 1 : sum / layers;
}

}  // namespace

GateBalance::GateBalance(const GateBalanceInput& in)
    : groups_(in.groups),
      options_(in.bias),
      place_(in.attention.place),
      members_(in.attention.members),
      num_experts_(static_cast<std::size_t>(in.shape.num_experts)),
      index_of_layer_(numbers_of_layers(moe_layers_of(in.shape), in.shape.num_layers)),
      gate_(static_cast<int>(moe_layers_of(in.shape).size()), in.shape.num_experts, in.above,
            in.bias),
      counts_(in.shape, in.bias.block, in.max_chunks, place_, members_),
      twins_(in.batch.mode, in.bias, in.batch),
      journal_(in.journal),
      passes_(static_cast<std::size_t>(in.max_chunks)),
      pass_of_chunk_(static_cast<std::size_t>(in.max_chunks)),
      table_of_row_(static_cast<std::size_t>(in.max_chunks)) {
  num_layers_ = moe_layers_of(in.shape).size();
  std::string kept;
  if (journal_ != nullptr) kept = journal_->text();
  for (const BlockJournal::Entry& entry :
       BlockJournal::entries_of(groups_.world().broadcast(kept, 0))) {
    add_block(entry.counts, entry.drift);
  }
  sampled_blocks_ = std::max<std::int64_t>(0, gate_.blocks() - 2);
}

BlockLoad GateBalance::load(bool speaks, std::span<const std::unique_ptr<Batcher>> batchers) const {
  BlockLoad load;
  if (!speaks) return load;
  for (const auto& batcher : batchers) {
    for (const std::int32_t slot : batcher->sequences().taken()) {
      const Sequence& sequence = batcher->sequences().in_slot(slot);
      if (is_twin(sequence.request)) continue;
      load.oldest = std::min(load.oldest, counts_.block_of(sequence.asked.line));
    }
  }
  load.prompts = counts_.prompts(gate_.blocks());
  const Twins::Done done = twins_.done(sampled_blocks_);
  load.sampled = done.requests;
  load.drift = done.drift;
  return load;
}

void GateBalance::add_totals(BlockLoad& load, const RequestList& requests, bool all_read,
                             std::int64_t oldest_waiting_line) {
  const auto line_of = [&](std::size_t i) { return static_cast<std::int64_t>(requests[i].line); };
  load.oldest = std::min(load.oldest, counts_.block_of(oldest_waiting_line));
  const auto total = [&](std::int64_t block, std::size_t& first, const auto& counts) {
    const std::int64_t begin = block * options_.block, end = begin + options_.block;
    while (first < requests.size() && line_of(first) <= begin) ++first;
    const bool has_end = requests.size() > 0 && line_of(requests.size() - 1) > end;
    if (!all_read && !has_end) return std::int64_t{-1};
    std::int64_t count = 0;
    for (std::size_t i = first; i < requests.size() && line_of(i) <= end; ++i) {
      if (requests[i].usable == 1 && counts(line_of(i))) ++count;
    }
    return count;
  };
  load.all_prompts = total(gate_.blocks(), next_prompt_, [](std::int64_t) { return true; });
  load.all_sampled = total(sampled_blocks_, next_sampled_,
                           [this](std::int64_t line) { return twins_.is_sampled(line); });
}

/// Blocks follow one another, also where a later one is done before: what a block adds must not
/// depend on when ranks come to it.
void GateBalance::advance(std::span<const RankLoad> loads) {
  std::int64_t prompts = 0, sampled = 0;
  Drift drift;
  std::int64_t oldest = gate_.blocks();
  for (const RankLoad& load : loads) {
    oldest = std::min(oldest, load.blocks.oldest);
    prompts += load.blocks.prompts;
    sampled += load.blocks.sampled;
    drift += load.blocks.drift;
  }
  gate_.forget_before(oldest);
  const std::int64_t block = gate_.blocks();
  const bool prompts_done = prompts == loads[0].blocks.all_prompts;
  if (sampled == loads[0].blocks.all_sampled && sampled_blocks_ <= block) {
    drift_of_[sampled_blocks_] = drift;
    twins_.forget(sampled_blocks_++);
  }
  if (!prompts_done || sampled_blocks_ < block - 1) return;
  std::vector<std::int64_t> counts = counts_.counts(block);
  groups_.world().allreduce(std::span(counts), comm::Communicator::Reduce::sum);
  counts_.forget(block);
  const Drift known = block < 2 ? Drift{} : drift_of_[block - 2];
  drift_of_.erase(block - 2);
  if (journal_ != nullptr) journal_->append({counts, known});
  add_block(counts, known);
}

void GateBalance::add_block(std::span<const std::int64_t> counts, const Drift& drift) {
  busiest_.push_back(busiest_of(counts, num_experts_));
  gate_.add_drift(drift);
  gate_.add_block(counts);
}

/// Among those of the pass.
std::int32_t GateBalance::table_of(Tables& pass, std::int64_t block) const {
  const auto found = std::find(pass.blocks.begin(), pass.blocks.end(), block);
  if (found != pass.blocks.end()) return static_cast<std::int32_t>(found - pass.blocks.begin());
  pass.blocks.push_back(block);
  for (std::size_t layer = 0; layer < num_layers_; ++layer) {
    std::vector<float>& tables = pass.tables[layer];
    if (block == no_block) {
      tables.resize(tables.size() + num_experts_, 0.0F);
      continue;
    }
    const auto offsets = gate_.offsets(block).subspan(layer * num_experts_, num_experts_);
    tables.insert(tables.end(), offsets.begin(), offsets.end());
  }
  return static_cast<std::int32_t>(pass.blocks.size()) - 1;
}

void GateBalance::prepare(Batcher& batch, int first_slot) {
  Tables& pass = passes_[static_cast<std::size_t>(first_slot)];
  pass.blocks.clear();
  pass.tables.resize(num_layers_);
  for (auto& tables : pass.tables) tables.clear();
  std::unordered_map<std::int32_t, std::int32_t> table_of_request;
  for (const std::int32_t slot : batch.sequences().taken()) {
    const Sequence& sequence = batch.sequences().in_slot(slot);
    const std::int64_t block =
        is_twin(sequence.request) ? no_block : counts_.block_of(sequence.asked.line);
    table_of_request[sequence.request] = table_of(pass, block);
  }
  for (int c = 0; c < batch.num_chunks(); ++c) {
    const ChunkBatch& chunk = batch.chunk(c);
    const RowRange own =
        rows_of_member(static_cast<std::int64_t>(chunk.tokens.size()), place_, members_);
    const auto at = static_cast<std::size_t>(first_slot + c);
    pass_of_chunk_[at] = static_cast<std::size_t>(first_slot);
    auto& rows = table_of_row_[at];
    rows.clear();
    for (std::size_t s = 0; s < chunk.segments.size(); ++s) {
      const compute::Segment segment = own_part(chunk.segments[s], own);
      rows.insert(rows.end(), static_cast<std::size_t>(segment.num_rows),
                  table_of_request.at(chunk.requests[s]));
    }
  }
}

compute::ChoiceOffsets GateBalance::of(int chunk, int layer) const {
  const int number = index_of_layer_[static_cast<std::size_t>(layer)];
  const auto at = static_cast<std::size_t>(chunk);
  const Tables& pass = passes_[pass_of_chunk_[at]];
  return {pass.tables[static_cast<std::size_t>(number)].data(), table_of_row_[at].data(),
          static_cast<int>(pass.blocks.size())};
}

void GateBalance::take(Batcher& batch, int first_slot) {
  twins_.keep_prompts(batch.sequences());
  counts_.take(batch, first_slot);
}

void GateBalance::finish(std::vector<FinishedRequest>& finished) {
  twins_.take(finished);
  counts_.finish(finished);
}

json GateBalance::report() const {
  const GivenUp& own = counts_.given_up();
  std::int64_t sums[] = {own.choices, own.changed};
  groups_.world().allreduce(std::span(sums), comm::Communicator::Reduce::sum);
  std::vector<double> masses(static_cast<std::size_t>(groups_.world().size()));
  groups_.world().allgather_into(own.mass, std::span(masses));
  const bool speaks = groups_.job().speaks(groups_.world().rank());
  std::int64_t both[] = {speaks ? twins_.compared() : 0, speaks ? twins_.all().tokens : 0,
                         speaks ? twins_.all().change : 0,
                         speaks ? twins_.all().absolute_change : 0};
  groups_.world().allreduce(std::span(both), comm::Communicator::Reduce::sum);
  const Drift drift{both[1], both[2], both[3]};
  const double choices = std::max(1.0, static_cast<double>(sums[0]));
  json blocks = json::array();
  for (const double busiest : busiest_) blocks.push_back(busiest);
  return {{"block", options_.block},
          {"blocks", gate_.blocks()},
          {"busiest_expert_over_mean_by_block", blocks},
          {"largest_offset", gate_.largest()},
          {"held_by_max_drift", gate_.held()},
          {"router_mass_given_up", std::accumulate(masses.begin(), masses.end(), 0.0) / choices},
          {"choices_changed", static_cast<double>(sums[1]) / choices},
          {"computed_both_ways",
           {{"requests", both[0]},
            {"tokens", drift.tokens},
            {"mean_absolute_logprob_change", drift.mean_absolute()},
            {"mean_logprob_change", drift.mean()},
            {"perplexity_ratio", std::exp(-drift.mean())}}}};
}

}  // namespace atl
