#pragma once
// The trace: Chrome's JSON trace format, which Perfetto opens. One process per rank, one track for
// each stream of the arithmetic and one per chunk for its exchanges.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace atl::io {

/// One step of the schedule on one rank. Times in seconds of one common clock.
struct TraceEvent {
  std::uint8_t kind = 0;
  std::int16_t layer = 0;
  std::int16_t chunk = 0;
  std::uint8_t stream = 0;  ///< of arithmetic
  double begin = 0;
  double end = 0;
};

inline constexpr const char* one_stream[] = {"compute"};

/// Where an event is drawn: arithmetic by its stream, messages by their chunk, those between nodes
/// beside those inside, since they may be under way together.
enum class TraceLane : std::uint8_t { arithmetic, exchange, across };

/// Writes the events of all ranks ([rank][event]). `name` and `lane` say what an event is,
/// `streams` what a stream is called. Throws Error when the file cannot be written.
void write_trace(const std::string& path, const std::vector<std::vector<TraceEvent>>& ranks,
                 const std::function<std::string(const TraceEvent&)>& name,
                 const std::function<TraceLane(const TraceEvent&)>& lane,
                 std::span<const char* const> streams = one_stream);

}  // namespace atl::io
