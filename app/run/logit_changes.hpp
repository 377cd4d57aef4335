#pragma once
// What a request changes of logits before its tokens are drawn, kept up to date as it grows.

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "compute/sampling.hpp"
#include "io/requests.hpp"

namespace atl {

/// Depends on the request and its tokens alone. A request that changes nothing costs nothing.
class LogitChanges {
 public:
  /// Of a request that begins. `stop_tokens`: those of the model, banned like the request's own
  /// while it has fewer than min_tokens.
  void begin(const io::Request& asked, std::span<const std::int32_t> prompt,
             std::span<const std::int32_t> stop_tokens);
  /// A token was generated.
  void add(std::int32_t token);

  /// Whether the next token changes them.
  bool vary() const { return penalises_ || banned_for_ > 0; }
  std::span<const LogitChange> all() const { return changes_; }

 private:
  LogitChange& of(std::int32_t token);
  void lift_bans();

  std::vector<LogitChange> changes_;
  std::unordered_map<std::int32_t, std::size_t> place_of_;
  bool penalises_ = false;
  int banned_for_ = 0;  // tokens still to be generated
};

}  // namespace atl
