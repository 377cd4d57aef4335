// What passes have beside them, as they are set up.

#include <fmt/format.h>

#include <algorithm>

#include "app/run/passes.hpp"
#include "app/run/request_rows.hpp"
#include "app/run/route.hpp"
#include "compute/across_rows.hpp"

namespace atl {

DriverOptions Passes::driver_options() {
  const Sizes& sizes = in_.sizes;
  DriverOptions driver;
  driver.num_chunks = in_.sizes.batch.max_chunks;
  driver.num_flights = in_.sizes.batch.num_flights;
  driver.flights_at_once = flights_of_stage(driver.num_flights, in_.groups.job().division().pp);
  driver.overlap = !in_.options.no_overlap;
  driver.transport = in_.transport;
  driver.shares_cores = in_.ranks.given.mine.cores < 1;
  driver.row_bytes =
      static_cast<std::size_t>(in_.model.config.shape.hidden) * size_of(in_.model.dtype);
  const ModelShape& shape = in_.model.config.shape;
  driver.across_row_bytes = static_cast<std::size_t>(
      compute::across_row(shape.hidden, in_.model.dtype, shape.top_k).bytes);
  driver.flat = may_take(in_.options, in_.groups.job(), Route::flat);
  driver.nodes = may_take(in_.options, in_.groups.job(), Route::nodes);
  driver.mode = in_.work.mode();
  const compute::Part& part = sizes.backend.part;
  driver.attention = part.attention;
  driver.stage.first_layer = part.first_layer;
  driver.stage.end_layer = part.end_layer;
  driver.stage.attention_shared = part.attention.shared();
  driver.stage.output = part.attention.output;
  driver.stage.experts_shared = part.expert_share.shared();
  driver.stage.sequences_shared = in_.groups.members(Share::sequences).size() > 1;
  driver.max_chunk_tokens = sizes.backend.max_chunk_tokens;
  driver.max_head_rows = std::min(sizes.batch.max_sequences * (1 + sizes.batch.speculate),
                                  sizes.backend.max_chunk_tokens);
  if (!in_.dumped_layers.empty()) open_dump(driver);
  if (!in_.options.record_routing.empty()) open_record(driver);
  if (in_.options.balance == Balance::bias) open_gate(driver);
  if (sizes.batch.speculate > 0) open_guessed(driver);
  if (in_.replay != nullptr) {
    driver.forced = [this](int chunk, int layer) { return in_.replay->of(chunk, layer); };
  }
  return driver;
}

std::uint64_t Passes::schedule_hash() const {
  std::uint64_t hash = 0;
  for (const PassForm& form : driver_->forms()) {
    hash = hash * 31 + driver_->schedule(in_.sizes.batch.max_chunks, form).hash();
  }
  return hash;
}

void Passes::open_dump(DriverOptions& driver) {
  const RequestRows rows = shared_request_rows(in_.world, in_.work.rows());
  io::ActivationLayout layout;
  layout.requests = rows.ids;
  layout.first_row = rows.first_row;
  layout.hidden = in_.model.config.shape.hidden;
  layout.layers = in_.dumped_layers;
  layout.model = fmt::format("{:016x}", in_.model.file->identity());
  dump_.emplace(in_.options.activations, layout, in_.groups, in_.model.config.shape,
                in_.sizes.num_chunks());
  driver.save_x = [this](int chunk, int layer, std::size_t tokens) {
    return dump_->buffer(chunk, layer, tokens);
  };
}

void Passes::open_record(DriverOptions& driver) {
  const auto layout = routing_layout(in_.model.config.shape, in_.model.file->identity(),
                                     shared_request_rows(in_.world, in_.work.rows()));
  record_.emplace(in_.work.written(in_.options.record_routing), layout, in_.world,
                  in_.model.config.shape.num_layers, in_.sizes.num_chunks(), in_.options.resume,
                  in_.work.shared_kept());
  driver.save_choices = [this](int chunk, int layer, std::size_t tokens) {
    return record_->place(chunk, layer, tokens);
  };
}

void Passes::open_gate(DriverOptions& driver) {
  gate_.emplace(GateBalanceInput{in_.groups, in_.model.config.shape, in_.sizes.batch,
                                 in_.options.balance_when.above, in_.options.bias,
                                 in_.sizes.backend.part.attention, in_.sizes.num_chunks(),
                                 in_.work.blocks ? &*in_.work.blocks : nullptr});
  if (root()) in_.work.queue().hold_after(gate_->last_open_line());
  driver.save_choices = [this](int chunk, int layer, std::size_t tokens) {
    return gate_->place(chunk, layer, tokens);
  };
  driver.offsets = [this](int chunk, int layer) { return gate_->of(chunk, layer); };
}

/// Nothing else asks for choices where tokens are guessed.
void Passes::open_guessed(DriverOptions& driver) {
  const StageSteps& stage = driver.stage;
  const int num_layers = in_.model.config.shape.num_layers;
  guessed_.emplace(
      in_.model.config.shape,
      LayerRange{stage.first_layer, stage.end_layer < 0 ? num_layers : stage.end_layer},
      in_.sizes.num_chunks(), in_.sizes.backend.part.attention);
  driver.save_choices = [this](int chunk, int layer, std::size_t tokens) {
    return guessed_->place(chunk, layer, tokens);
  };
}

}  // namespace atl
