#include "io/seen_ids.hpp"

#include <limits>
#include <span>

#include "compute/error.hpp"
#include "io/long_checksum.hpp"

namespace atl::io {

namespace {

constexpr int line_bits = 40;  // as the journal has them
constexpr std::uint64_t line_mask = (std::uint64_t{1} << line_bits) - 1;

}  // namespace

/// Where it is, or would be.
std::size_t SeenIds::slot_of(const Seen& seen) const {
  std::size_t slot = seen.low & (slots_.size() - 1);
  for (; slots_[slot] != 0; slot = (slot + 1) & (slots_.size() - 1)) {
    const Seen& other = seen_[slots_[slot] - 1];
    if (other.low == seen.low && (other.high_and_line ^ seen.high_and_line) <= line_mask) break;
  }
  return slot;
}

void SeenIds::grow() {
  slots_.assign(2 * slots_.size(), 0);
  for (std::size_t i = 0; i < seen_.size(); ++i) {
    slots_[slot_of(seen_[i])] = static_cast<std::uint32_t>(i) + 1;
  }
}

std::int64_t SeenIds::line_of(std::string_view id, std::int64_t line) {
  const LongChecksum sum = long_checksum_of(std::as_bytes(std::span(id)), 0);
  const Seen seen{sum.low, (sum.high << line_bits) | static_cast<std::uint64_t>(line)};
  std::uint32_t& slot = slots_[slot_of(seen)];
  if (slot != 0) return static_cast<std::int64_t>(seen_[slot - 1].high_and_line & line_mask);
  require(seen_.size() < std::numeric_limits<std::uint32_t>::max() - 1,
          "the file has more than 4 billion lines; divide it");
  seen_.push_back(seen);
  slot = static_cast<std::uint32_t>(seen_.size());
  if (10 * seen_.size() > 7 * slots_.size()) grow();
  return 0;
}

}  // namespace atl::io
