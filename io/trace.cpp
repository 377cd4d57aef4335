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
                 const std::function<bool(const TraceEvent&)>& is_exchange,
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
      const int track = is_exchange(event) ? num_streams + event.chunk : event.stream;
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
      const auto label = track < num_streams ? std::string(streams[static_cast<std::size_t>(track)])
                                             : fmt::format("exchange c{}", track - num_streams);
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
