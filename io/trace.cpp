#include "io/trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <set>

#include "io/text_file.hpp"

namespace atl::io {

void write_trace(const std::string& path, const std::vector<std::vector<TraceEvent>>& ranks,
                 const std::function<std::string(const TraceEvent&)>& name,
                 const std::function<TraceLane(const TraceEvent&)>& lane,
                 std::span<const char* const> streams) {
  const int num_streams = static_cast<int>(streams.size());
  double first = std::numeric_limits<double>::infinity();
  for (const auto& events : ranks) {
    for (const TraceEvent& event : events) first = std::min(first, event.begin);
  }
  TextFile file(path);
  file.write("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
  std::string text;
  const char* separator = "";
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    std::set<int> tracks;
    for (const TraceEvent& event : ranks[rank]) {
      const TraceLane of_event = lane(event);
      const int track =
          of_event == TraceLane::arithmetic
              ? event.stream
              : num_streams + 2 * event.chunk + (of_event == TraceLane::across ? 1 : 0);
      tracks.insert(track);
      text.clear();
      fmt::format_to(std::back_inserter(text),
                     "{}{{\"name\":\"{}\",\"ph\":\"X\",\"pid\":{},\"tid\":{},\"ts\":{:.3f},"
                     "\"dur\":{:.3f}}}",
                     separator, name(event), rank, track, (event.begin - first) * 1e6,
                     (event.end - event.begin) * 1e6);
      separator = ",\n";
      file.write(text);
    }
    file.write(
        fmt::format("{}{{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":{},\"args\":"
                    "{{\"name\":\"rank {}\"}}}}",
                    separator, rank, rank));
    separator = ",\n";
    for (const int track : tracks) {
      const int message = track - num_streams;
      const auto label = message < 0 ? std::string(streams[static_cast<std::size_t>(track)])
                                     : fmt::format("exchange c{}{}", message / 2,
                                                   message % 2 == 0 ? "" : ", between nodes");
      file.write(
          fmt::format("{}{{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":{},\"tid\":{},"
                      "\"args\":{{\"name\":\"{}\"}}}}",
                      separator, rank, track, label));
    }
  }
  file.write("\n]}\n");
  file.close();
}

}  // namespace atl::io
