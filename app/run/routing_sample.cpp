#include "app/run/routing_sample.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "compute/error.hpp"
#include "io/routing_file.hpp"

namespace atl {

namespace {

constexpr std::int64_t choices_at_once = 1 << 18;
constexpr int most_experts = 1 << 16;

void check_options(const SampleOptions& options, const io::RoutingReader& reader) {
  const io::RoutingLayout& layout = reader.layout();
  require(options.top_k <= layout.top_k,
          "{} has {} experts for a token, and --top-k {} asks for more; give {} or less",
          options.path, layout.top_k, options.top_k, layout.top_k);
  require(
      reader.is_trace() || options.num_experts == 0 || options.num_experts == layout.num_experts,
      "{} says that it is of {} experts, and --experts {}; leave that away", options.path,
      layout.num_experts, options.num_experts);
  require(reader.is_trace() || options.first_layer == 0,
          "{} says which layers it is of; leave --first-layer away", options.path);
}

/// Fills the parts, row by row.
class Parts {
 public:
  Parts(const SampleOptions& options, io::RoutingReader& reader, RoutingSample& sample)
      : options_(options), reader_(reader), layout_(reader.layout()), sample_(sample) {
    for (std::size_t r = 0; r + 1 < layout_.first_row.size(); ++r) rows_ += reader.num_rows(r);
    require(rows_ > 0, "{} holds no tokens", options.path);
    const ExpertChoices none{0, options.top_k > 0 ? options.top_k : layout_.top_k, {}};
    sample.made_from.assign(layout_.layers.size(), none);
    sample.held_out = sample.made_from;
  }

  void read() {
    const auto kept =
        static_cast<std::int64_t>(std::ceil(static_cast<double>(rows_) * (1 - options_.held_out)));
    const bool by_request = layout_.first_row.size() > 2;
    std::int64_t before = 0;
    for (std::size_t r = 0; r + 1 < layout_.first_row.size(); ++r) {
      const std::int64_t rows = reader_.num_rows(r);
      const std::int64_t first_part =
          by_request ? (before + rows / 2 < kept ? rows : 0) : std::min(rows, kept);
      read_rows(r, 0, first_part, sample_.made_from);
      read_rows(r, first_part, rows, sample_.held_out);
      before += rows;
    }
    require(sample_.made_from.front().num_tokens() > 0,
            "--holdout {} leaves no tokens of {} to make a placement from", options_.held_out,
            options_.path);
  }

  int largest_expert() const { return largest_; }

 private:
  void read_rows(std::size_t request, std::int64_t begin, std::int64_t end,
                 std::vector<ExpertChoices>& part) {
    const std::int64_t piece = std::max<std::int64_t>(1, choices_at_once / layout_.row_choices());
    const auto columns = static_cast<std::size_t>(layout_.top_k);
    for (std::int64_t at = begin; at < end; at += piece) {
      const std::int64_t rows = std::min(piece, end - at);
      experts_.resize(static_cast<std::size_t>(rows * layout_.row_choices()));
      weights_.resize(reader_.has_weights() ? experts_.size() : 0);
      reader_.read(request, at, rows, experts_, weights_);
      for (std::size_t i = 0; i < experts_.size(); i += columns) {
        ExpertChoices& choices = part[i / columns % layout_.layers.size()];
        const auto token = std::span(experts_).subspan(i, static_cast<std::size_t>(choices.top_k));
        take(token, at + static_cast<std::int64_t>(i) / layout_.row_choices(), choices);
      }
    }
  }

  void take(std::span<const std::int32_t> token, std::int64_t row, ExpertChoices& choices) {
    const int end = layout_.num_experts > 0    ? layout_.num_experts
                    : options_.num_experts > 0 ? options_.num_experts
                                               : most_experts;
    for (std::size_t j = 0; j < token.size(); ++j) {
      const auto before = token.first(j);
      const bool twice = std::find(before.begin(), before.end(), token[j]) != before.end();
      require(token[j] >= 0 && token[j] < end && !twice, "cannot use {}: row {} has expert {}, {}",
              options_.path, row, token[j],
              twice ? std::string("twice") : fmt::format("and there are {}", end));
      largest_ = std::max(largest_, token[j]);
      choices.experts.push_back(static_cast<std::uint16_t>(token[j]));
    }
  }

  const SampleOptions& options_;
  io::RoutingReader& reader_;
  const io::RoutingLayout& layout_;
  RoutingSample& sample_;
  std::int64_t rows_ = 0;
  int largest_ = 0;
  std::vector<std::int32_t> experts_;
  std::vector<float> weights_;
};

}  // namespace

RoutingSample read_sample(const SampleOptions& options) {
  io::RoutingReader reader(options.path);
  check_options(options, reader);
  RoutingSample sample;
  Parts parts(options, reader, sample);
  parts.read();
  for (const int layer : reader.layout().layers)
    sample.layers.push_back(layer + options.first_layer);
  int experts = reader.layout().num_experts;
  if (experts == 0) experts = options.num_experts;
  if (experts == 0) experts = parts.largest_expert() + 1;
  for (auto* part : {&sample.made_from, &sample.held_out}) {
    for (ExpertChoices& choices : *part) choices.num_experts = experts;
  }
  return sample;
}

}  // namespace atl
