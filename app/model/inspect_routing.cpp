#include "app/model/inspect_routing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "app/model/routing_statistics.hpp"
#include "compute/error.hpp"
#include "io/routing_file.hpp"

namespace atl {

namespace {

constexpr std::int64_t choices_at_once = 1 << 18;

/// What one pass over all choices brings to light.
class Survey {
 public:
  Survey(io::RoutingReader& reader, bool verify)
      : reader_(reader),
        layout_(reader.layout()),
        verify_(verify),
        mean_weights_(reader.has_weights() ? static_cast<std::size_t>(layout_.top_k) : 0) {
    num_experts_ = layout_.num_experts > 0 ? layout_.num_experts : largest_expert() + 1;
    layers_.assign(layout_.layers.size(), RoutingStatistics(num_experts_));
    for_each_piece([this](std::size_t request, std::int64_t position) { take(request, position); });
    for (double& weight : mean_weights_)
      weight /= static_cast<double>(std::max<std::int64_t>(1, positions_)) *
                static_cast<double>(layers_.size());
  }

  int num_experts() const { return num_experts_; }
  std::int64_t positions() const { return positions_; }
  const std::vector<RoutingStatistics>& layers() const { return layers_; }
  const std::vector<double>& mean_weights() const { return mean_weights_; }
  const std::vector<std::string>& damage() const { return damage_; }

 private:
  template <class Visit>
  void for_each_piece(const Visit& visit) {
    const std::int64_t piece = std::max<std::int64_t>(1, choices_at_once / layout_.row_choices());
    for (std::size_t r = 0; r + 1 < layout_.first_row.size(); ++r) {
      const std::int64_t rows = reader_.num_rows(r);
      io::RoutingSummer summer;
      for (std::int64_t at = 0; at < rows; at += piece) {
        const std::int64_t count = std::min(piece, rows - at);
        experts_.resize(static_cast<std::size_t>(count * layout_.row_choices()));
        weights_.resize(reader_.has_weights() ? experts_.size() : 0);
        reader_.read(r, at, count, experts_, weights_);
        if (verify_) {
          const std::vector<std::uint16_t> narrow(experts_.begin(), experts_.end());
          summer.add(narrow, weights_);
        }
        visit(r, at);
      }
      const auto sums = reader_.sums(r);
      if (verify_ && sums && rows > 0 && *sums != summer.sums()) {
        damage_.push_back(fmt::format("request \"{}\"", layout_.requests[r]));
      }
    }
  }

  /// A .npy does not say how many experts there are.
  int largest_expert() {
    std::int32_t largest = 0;
    for_each_piece([&](std::size_t, std::int64_t) {
      largest = std::max(largest, *std::max_element(experts_.begin(), experts_.end()));
    });
    return largest;
  }

  void take(std::size_t request, std::int64_t position) {
    const auto top_k = static_cast<std::size_t>(layout_.top_k);
    for (std::size_t i = 0; i < experts_.size(); i += top_k) {
      const std::span<const std::int32_t> token = std::span(experts_).subspan(i, top_k);
      const std::size_t layer = i / top_k % layers_.size();
      if (layer == 0) ++positions_;
      for (std::size_t j = 0; j < top_k; ++j) {
        const bool twice = std::find(token.begin() + static_cast<std::ptrdiff_t>(j) + 1,
                                     token.end(), token[j]) != token.end();
        require(
            token[j] >= 0 && token[j] < num_experts_ && !twice,
            "cannot read {}: position {}{} has expert {} in layer {}, {}", reader_.path(),
            position + static_cast<std::int64_t>(i) / layout_.row_choices(),
            reader_.is_trace() ? "" : fmt::format(" of request \"{}\"", layout_.requests[request]),
            token[j], layout_.layers[layer], twice ? "twice" : fmt::format("of {}", num_experts_));
        if (!mean_weights_.empty()) mean_weights_[j] += static_cast<double>(weights_[i + j]);
      }
      layers_[layer].add(token);
    }
  }

  io::RoutingReader& reader_;
  const io::RoutingLayout& layout_;
  bool verify_;
  int num_experts_ = 0;
  std::int64_t positions_ = 0;
  std::vector<RoutingStatistics> layers_;
  std::vector<double> mean_weights_;  // [top_k]; empty: the file has none
  std::vector<std::string> damage_;
  std::vector<std::int32_t> experts_;
  std::vector<float> weights_;
};

std::string skew_table(const Survey& survey, const std::vector<int>& layers) {
  std::string text =
      fmt::format("{:>6}  {:>9} {:>7}  {:>9} {:>7}  {:>9}  {:>9}  {:>9}  {}\n", "layer",
                  "most rows", "expert", "least", "expert", "most/mean", "deviation", "effective",
                  "most often together: experts, tokens, lift");
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const RoutingStatistics& layer = survey.layers()[i];
    const auto [least, most] = std::minmax_element(layer.loads().begin(), layer.loads().end());
    const RoutingStatistics::Pair pair = layer.commonest_pair();
    fmt::format_to(
        std::back_inserter(text),
        "{:>6}  {:>9} {:>7}  {:>9} {:>7}  {:>9.2f}  {:>9.2f}  {:>9.1f}  {}\n", layers[i], *most,
        most - layer.loads().begin(), *least, least - layer.loads().begin(),
        layer.largest_over_mean(), layer.variation(), layer.effective_experts(),
        pair.a < 0 ? "-"
                   : fmt::format("{} + {}, {}, {:.2f}", pair.a, pair.b, pair.tokens, pair.lift));
  }
  return text +
         "most/mean: rows of the expert with most, 1 is even; deviation: of the rows, over their "
         "mean; effective: e^entropy;\nlift: over what experts chosen independently would share\n";
}

std::string loads_table(const Survey& survey, const std::vector<int>& layers) {
  std::string text = "rows of experts 0, 1, ... by layer\n";
  for (std::size_t i = 0; i < layers.size(); ++i) {
    fmt::format_to(std::back_inserter(text), "{:>6}  {}\n", layers[i],
                   fmt::join(survey.layers()[i].loads(), " "));
  }
  return text;
}

}  // namespace

std::string routing_text(const std::string& path, bool verify) {
  io::RoutingReader reader(path);
  const io::RoutingLayout& layout = reader.layout();
  const Survey survey(reader, verify);
  require(survey.damage().empty(), "the choices of {} requests of {} are damaged:\n{}",
          survey.damage().size(), path, fmt::join(survey.damage(), "\n"));
  std::string text = fmt::format("routing file {}\n", path);
  if (reader.is_trace()) {
    text += "a trace: one list of tokens, without weights\n";
  } else {
    text += fmt::format("of model {}\n{} requests\n",
                        layout.model.empty() ? "(any of this description)" : layout.model,
                        layout.requests.size());
  }
  text += fmt::format("{} tokens x {} MoE layers x {} of {}{} experts\n", survey.positions(),
                      layout.layers.size(), layout.top_k, reader.is_trace() ? "at least " : "",
                      survey.num_experts());
  if (!survey.mean_weights().empty()) {
    text += fmt::format("mean weights, from a token's first expert on: {:.4f}\n",
                        fmt::join(survey.mean_weights(), " "));
  }
  text += "\n" + skew_table(survey, layout.layers) + "\n" + loads_table(survey, layout.layers);
  if (verify && !reader.is_trace()) {
    text += layout.requests.empty() || !reader.sums(0) ? "the file has no checksums\n"
                                                       : "checksums: all good\n";
  }
  return text;
}

}  // namespace atl
