#pragma once
// What blocks of requests chose, kept beside the results: a run that is resumed goes on with the
// offsets that the interrupted one had.

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "app/plan/gate_bias.hpp"

namespace atl {

/// On rank 0. A line of JSON a block, in order; one that was cut short by the end of a run does not
/// count.
class BlockJournal {
 public:
  struct Entry {
    std::vector<std::int64_t> counts;  ///< [MoE layers * experts]
    Drift drift;                       ///< of the second block before
  };

  /// For results in `output`. Without `resume` an earlier one is removed. Throws Error where it
  /// cannot be written.
  BlockJournal(const std::string& output, bool resume);

  /// All entries, for entries_of().
  const std::string& text() const { return text_; }
  std::int64_t blocks() const { return blocks_; }
  static std::vector<Entry> entries_of(std::string_view text);

  /// Reaches the file before it returns: results of later blocks depend on it.
  void append(const Entry& entry);
  /// With the results written it has served.
  void remove();

 private:
  std::string path_;
  std::string text_;
  std::int64_t blocks_ = 0;
  std::ofstream file_;
};

}  // namespace atl
