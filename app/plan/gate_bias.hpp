#pragma once
// Offsets on the router's choice that keep hot experts below a load, from what blocks of requests
// chose before: a pure function of counts, so that it is the same in every layout.

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

namespace atl {

struct BiasOptions {
  std::int64_t block = 64;   ///< lines of the input in a block
  double max_bias = 0.2;     ///< of an offset, in router probability
  double max_drift = 0.05;   ///< mean |change of log-probability| from which on none grows
  std::int64_t sample = 32;  ///< every so many lines one is computed with and without offsets
};

/// What the offsets changed in requests that were computed both ways. Sums of whole numbers, which
/// have no order: changes of log-probabilities in units of 1 / drift_units.
struct Drift {
  static constexpr double drift_units = 1 << 20;

  std::int64_t tokens = 0;
  std::int64_t change = 0;  ///< with offsets minus without
  std::int64_t absolute_change = 0;

  Drift& operator+=(const Drift& other);
  void add(float with, float without);
  double mean() const;  ///< nats a token; 0 where there are none
  double mean_absolute() const;
};

/// An expert's offset is added to its probability where experts are chosen, not to the weight it
/// then has. Those of block b follow from what prompts of blocks up to b - 2 chose: an expert above
/// `above` times its layer's mean loses, one below gets back what it has lost. That no other
/// expert moves is what costs least router mass for a bound on the busiest.
class GateBias {
 public:
  /// `above`: an expert's tokens over the mean of its layer's.
  GateBias(int num_layers, int num_experts, double above, const BiasOptions& options);

  /// `counts` [layers * experts]: prompt tokens that chose each expert, of the next block.
  void add_block(std::span<const std::int64_t> counts);
  /// Of the next block whose sample is done; where too much has changed, no offset grows from then
  /// on.
  void add_drift(const Drift& drift);

  /// Blocks that have been added: offsets are known of two more.
  std::int64_t blocks() const { return blocks_; }
  /// [layers * experts] for a block; those of a layer add up to zero. Of blocks before the last
  /// forgotten one nothing is known any more.
  std::span<const float> offsets(std::int64_t block) const;
  /// No block before this one is asked for again.
  void forget_before(std::int64_t block);

  double largest() const;              ///< of the newest offsets, without their sign
  bool held() const { return held_; }  ///< by max_drift

 private:
  void move_layer(std::span<const std::int64_t> counts, std::size_t first);
  std::vector<float> published() const;

  std::size_t num_experts_;
  double above_;
  BiasOptions options_;
  bool held_ = false;
  std::int64_t blocks_ = 0;
  // [layers * experts]: what an expert has lost so far (not above zero), how far it moves next, and
  // which way it moved last
  std::vector<double> lost_, step_;
  std::vector<int> moved_;
  std::int64_t first_known_ = 0;           // block of tables_[0]
  std::deque<std::vector<float>> tables_;  // by block
};

}  // namespace atl
