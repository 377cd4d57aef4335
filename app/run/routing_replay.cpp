#include "app/run/routing_replay.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <span>
#include <string_view>
#include <utility>

#include "app/run/computed_rows.hpp"
#include "app/run/routing_record.hpp"
#include "comm/watchdog.hpp"
#include "compute/error.hpp"
#include "io/model_file.hpp"

namespace atl {

namespace {

/// Choices that are read at once, so that a token is not a read of its own.
constexpr std::int64_t read_at_once = 1 << 16;

/// One checksum of a sequence of texts.
std::uint64_t chained(std::uint64_t before, std::span<const std::byte> bytes) {
  const std::array<std::uint64_t, 2> both = {before, io::checksum_of(bytes)};
  return io::checksum_of(std::as_bytes(std::span(both)));
}

}  // namespace

ReplayFile::ReplayFile(const std::string& path, const comm::Communicator& world,
                       const ModelShape& shape, std::uint64_t model)
    : top_k_(shape.top_k) {
  world.agree([&] {
    reader_ = std::make_unique<io::RoutingReader>(path);
    check_model(shape, model);
  });
  std::string checksum;
  world.agree([&] {
    if (world.rank() == 0) checksum = fmt::format("{:016x}", scan(shape.num_experts));
  });
  identity_ = fmt::format("{} with {} weights", world.broadcast(checksum, 0), weights());
}

void ReplayFile::check_model(const ModelShape& shape, std::uint64_t model) const {
  const io::RoutingLayout& layout = reader_->layout();
  const std::string identity = fmt::format("{:016x}", model);
  const std::string problem = "cannot replay " + reader_->path();
  const std::vector<int> layers = moe_layers_of(shape);
  require(layout.model.empty() || layout.model == identity,
          "{}: it was recorded with the model {}, and this one is {}; give the file of a run with "
          "this model",
          problem, layout.model, identity);
  require(layout.layers.size() == layers.size() && (is_trace() || layout.layers == layers),
          "{}: it has {} MoE layers and the model {} ({}); give a file of this model", problem,
          layout.layers.size(), layers.size(),
          layout.layers.size() == layers.size() ? "others" : "they must be the same");
  require(layout.top_k == top_k_ || (is_trace() && layout.top_k > top_k_),
          "{}: it has {} experts for a token and the model takes {}; give a file of this model",
          problem, layout.top_k, top_k_);
  require(is_trace() || layout.num_experts == shape.num_experts,
          "{}: it is of {} experts and the model has {}; give a file of this model", problem,
          layout.num_experts, shape.num_experts);
}

/// Looks at every choice that may be taken. Returns their checksum.
std::uint64_t ReplayFile::scan(int num_experts) {
  const io::RoutingLayout& layout = reader_->layout();
  const auto columns = static_cast<std::size_t>(layout.top_k);
  const std::int64_t piece = std::max<std::int64_t>(1, read_at_once / layout.row_choices());
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::uint64_t sum = 0;
  for (std::size_t r = 0; r + 1 < layout.first_row.size(); ++r) {
    const std::string id = is_trace() ? "" : layout.requests[r];
    sum = chained(sum, std::as_bytes(std::span(id)));
    io::RoutingSummer summer;
    for (std::int64_t at = 0; at < reader_->num_rows(r); at += piece) {
      const std::int64_t rows = std::min(piece, reader_->num_rows(r) - at);
      experts.resize(static_cast<std::size_t>(rows * layout.row_choices()));
      weights.resize(reader_->has_weights() ? experts.size() : 0);
      reader_->read(r, at, rows, experts, weights);
      for (std::size_t i = 0; i < experts.size(); i += columns) {
        const std::span<const std::int32_t> token =
            std::span(experts).subspan(i, static_cast<std::size_t>(top_k_));
        for (std::size_t j = 0; j < token.size(); ++j) {
          const bool twice =
              std::find(token.begin(), token.begin() + static_cast<std::ptrdiff_t>(j), token[j]) !=
              token.begin() + static_cast<std::ptrdiff_t>(j);
          if (token[j] >= 0 && token[j] < num_experts && !twice) continue;
          const auto row = static_cast<std::int64_t>(i) / layout.row_choices();
          const auto layer = i / columns % layout.layers.size();
          fail("cannot replay {}: {}{} {} of {}layer {} has expert {}, {}", reader_->path(),
               is_trace() ? "" : fmt::format("request \"{}\": ", id),
               is_trace() ? "token" : "position", at + row, is_trace() ? "MoE " : "",
               layout.layers[layer], token[j],
               twice ? "which it has already; a token's experts are different ones"
                     : fmt::format("and the model has {}; give a file of this model", num_experts));
        }
        sum = chained(sum, std::as_bytes(token));
      }
      sum = chained(sum, std::as_bytes(std::span(weights)));
      summer.add(std::vector<std::uint16_t>(experts.begin(), experts.end()), weights);
    }
    const auto sums = reader_->sums(r);
    require(!sums || reader_->num_rows(r) == 0 || *sums == summer.sums(),
            "cannot replay {}: the choices of request \"{}\" are damaged (their checksum is "
            "another); record them again",
            reader_->path(), id);
  }
  return sum;
}

RoutingReplay::RoutingReplay(ReplayFile& file, RequestRows requests, const ModelShape& shape,
                             int max_chunks, int place, int members)
    : file_(file), place_(place), members_(members), requests_(std::move(requests)) {
  const std::vector<int> layers = moe_layers_of(shape);
  num_layers_ = layers.size();
  index_of_layer_ = numbers_of_layers(layers, shape.num_layers);
  chosen_.resize(static_cast<std::size_t>(max_chunks) * num_layers_);
  sources_.resize(requests_.ids.size());
  if (file_.is_trace()) {
    find_in_trace();
  } else {
    find_by_id();
  }
}

/// A request that ended at a stop token has fewer rows than it may have had, and may end so again.
void RoutingReplay::find_by_id() {
  const std::vector<std::int64_t>& first_row = requests_.first_row;
  const io::RoutingLayout& layout = file_.reader().layout();
  // Two requests may have one name: the first of them has the first entry of that name.
  struct Named {
    std::vector<std::size_t> entries;
    std::size_t taken = 0;
  };
  std::map<std::string_view, Named> named;
  for (std::size_t e = 0; e < layout.requests.size(); ++e) {
    named[layout.requests[e]].entries.push_back(e);
  }
  for (std::size_t r = 0; r < requests_.ids.size(); ++r) {
    const std::int64_t wanted = first_row[r + 1] - first_row[r];
    const auto found = named.find(requests_.ids[r]);
    const bool there = found != named.end() && found->second.taken < found->second.entries.size();
    require(there || wanted == 0, "cannot replay {}: it has no request \"{}\"{}", file_.path(),
            requests_.ids[r], found == named.end() ? "" : " more of that name");
    if (!there) continue;
    const std::size_t entry = found->second.entries[found->second.taken++];
    if (wanted == 0) continue;
    const std::int64_t rows = file_.reader().num_rows(entry);
    const bool ended_early = rows < layout.first_row[entry + 1] - layout.first_row[entry];
    const std::int64_t prompt = requests_.prompt_lengths[r];
    require(
        rows >= wanted || (ended_early && rows >= prompt),
        "cannot replay {}: it is short: it has choices of {} positions of request \"{}\", which "
        "may need {}",
        file_.path(), rows, requests_.ids[r], wanted);
    sources_[r] = {entry, 0, rows};
  }
}

void RoutingReplay::find_in_trace() {
  const std::vector<std::int64_t>& first_row = requests_.first_row;
  const std::int64_t rows = file_.reader().num_rows(0);
  require(
      rows >= first_row.back(),
      "cannot replay {}: it is short: it has choices of {} tokens, and the requests may need {} "
      "(prompts, and all tokens that they may generate but the last of each)",
      file_.path(), rows, first_row.back());
  for (std::size_t r = 0; r < requests_.ids.size(); ++r) {
    sources_[r] = {0, first_row[r], first_row[r + 1] - first_row[r]};
  }
}

const RoutingReplay::Ahead& RoutingReplay::read_ahead(std::size_t request, std::int64_t first,
                                                      std::int64_t rows) {
  const Source& source = sources_[request];
  require(first + rows <= source.rows,
          "cannot replay {}: it is short: it has choices of {} positions of request \"{}\", and "
          "position {} is needed",
          file_.path(), source.rows, requests_.ids[request], source.rows);
  Ahead& ahead = ahead_[request];
  if (first >= ahead.first && first + rows <= ahead.first + ahead.rows) return ahead;
  const std::int64_t choices = file_.reader().layout().row_choices();
  ahead.first = first;
  ahead.rows = std::min(std::max(rows, read_at_once / choices), source.rows - first);
  ahead.experts.resize(static_cast<std::size_t>(ahead.rows * choices));
  ahead.weights.resize(file_.reader().has_weights() ? ahead.experts.size() : 0);
  file_.reader().read(source.entry, source.first + first, ahead.rows, ahead.experts, ahead.weights);
  return ahead;
}

void RoutingReplay::prepare(Batcher& batch, int first_slot) {
  for (int c = 0; c < batch.num_chunks(); ++c) {
    const ChunkBatch& chunk = batch.chunk(c);
    const RowRange own =
        rows_of_member(static_cast<std::int64_t>(chunk.tokens.size()), place_, members_);
    for (std::size_t s = 0; s < chunk.segments.size(); ++s) {
      const compute::Segment segment = own_part(chunk.segments[s], own);
      if (segment.num_rows == 0) continue;
      take(first_slot + c, static_cast<std::size_t>(own.size()), segment,
           static_cast<std::size_t>(chunk.requests[s]));
    }
  }
}

void RoutingReplay::take(int chunk, std::size_t num_rows, const compute::Segment& segment,
                         std::size_t request) {
  const Ahead& ahead = read_ahead(request, segment.first_position, segment.num_rows);
  const auto top_k = static_cast<std::size_t>(file_.top_k());
  const auto columns = static_cast<std::size_t>(file_.columns());
  const auto skipped = static_cast<std::size_t>(segment.first_position - ahead.first);
  for (std::size_t layer = 0; layer < num_layers_; ++layer) {
    Chosen& chosen = chosen_[static_cast<std::size_t>(chunk) * num_layers_ + layer];
    if (chosen.experts.size() < num_rows * top_k) chosen.experts.resize(num_rows * top_k);
    if (!ahead.weights.empty()) chosen.weights.resize(chosen.experts.size());
    for (std::size_t row = 0; row < static_cast<std::size_t>(segment.num_rows); ++row) {
      const std::size_t from = ((skipped + row) * num_layers_ + layer) * columns;
      const std::size_t to = (static_cast<std::size_t>(segment.first_row) + row) * top_k;
      for (std::size_t j = 0; j < top_k; ++j) {
        chosen.experts[to + j] = ahead.experts[from + j];
        if (!ahead.weights.empty()) chosen.weights[to + j] = ahead.weights[from + j];
      }
    }
  }
}

compute::ForcedChoices RoutingReplay::of(int chunk, int layer) const {
  const auto index = static_cast<std::size_t>(index_of_layer_[static_cast<std::size_t>(layer)]);
  const Chosen& chosen = chosen_[static_cast<std::size_t>(chunk) * num_layers_ + index];
  return {chosen.experts.data(), chosen.weights.empty() ? nullptr : chosen.weights.data()};
}

nlohmann::json RoutingReplay::report() const {
  return {{"file", file_.path()},
          {"choices", file_.identity()},
          {"weights", file_.weights()},
          {"experts_of_file", file_.columns()},
          {"experts_taken", file_.top_k()}};
}

void RoutingReplay::finish(std::span<const FinishedRequest> requests) {
  for (const FinishedRequest& done : requests) ahead_.erase(static_cast<std::size_t>(done.request));
}

}  // namespace atl
