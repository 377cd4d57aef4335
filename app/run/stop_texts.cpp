#include "app/run/stop_texts.hpp"

#include <algorithm>

namespace atl {

void StopTexts::begin(const std::vector<std::string>& stops) {
  stops_ = stops;
  longest_ = 0;
  for (const std::string& stop : stops_) longest_ = std::max(longest_, stop.size());
  before_tail_ = 0;
  tail_.clear();
}

bool StopTexts::add(std::string_view bytes) {
  if (!any()) return false;
  const std::size_t old = tail_.size();
  tail_ += bytes;
  std::size_t first = std::string::npos;
  for (const std::string& stop : stops_) {
    const std::size_t from = old - std::min(old, stop.size() - 1);
    first = std::min(first, tail_.find(stop, from));
  }
  if (first != std::string::npos) found_at_ = before_tail_ + first;
  const std::size_t gone = tail_.size() - std::min(tail_.size(), longest_ - 1);
  tail_.erase(0, gone);
  before_tail_ += gone;
  return first != std::string::npos;
}

}  // namespace atl
