#include "app/plan/ready.hpp"

#include <algorithm>
#include <functional>
#include <utility>

namespace atl {

ReadySteps::ReadySteps(Schedule schedule)
    : schedule_(std::move(schedule)), successors_(schedule_.steps.size()) {
  for (std::size_t i = 0; i < schedule_.steps.size(); ++i) {
    for (const auto dep : schedule_.steps[i].deps) {
      successors_[static_cast<std::size_t>(dep)].push_back(static_cast<std::int32_t>(i));
    }
  }
  for (auto* list : {&unmet_, &arithmetic_, &messages_, &taken_}) {
    list->reserve(schedule_.steps.size());
  }
}

void ReadySteps::begin() {
  unmet_.clear();
  arithmetic_.clear();
  messages_.clear();
  num_enqueued_ = num_completed_ = num_arithmetic_left_ = 0;
  for (std::size_t i = 0; i < schedule_.steps.size(); ++i) {
    const Step& step = schedule_.steps[i];
    if (!is_exchange(step.kind)) ++num_arithmetic_left_;
    unmet_.push_back(static_cast<std::int32_t>(step.deps.size()));
    if (step.deps.empty()) {
      (is_exchange(step.kind) ? messages_ : arithmetic_).push_back(static_cast<std::int32_t>(i));
    }
  }
  std::make_heap(arithmetic_.begin(), arithmetic_.end(), std::greater<>());
}

std::int32_t ReadySteps::next_arithmetic(std::size_t most_queued) {
  if (arithmetic_.empty() || num_enqueued_ >= most_queued) return -1;
  std::pop_heap(arithmetic_.begin(), arithmetic_.end(), std::greater<>());
  const std::int32_t step = arithmetic_.back();
  arithmetic_.pop_back();
  ++num_enqueued_;
  --num_arithmetic_left_;
  release(step, /*arithmetic=*/true, /*messages=*/false);
  return step;
}

std::span<const std::int32_t> ReadySteps::take_messages() {
  std::swap(messages_, taken_);
  messages_.clear();
  return taken_;
}

void ReadySteps::completed(std::int32_t index) {
  ++num_completed_;
  const bool message = is_exchange(step(index).kind);
  if (!message) --num_enqueued_;
  release(index, /*arithmetic=*/message, /*messages=*/true);
}

std::int32_t ReadySteps::first_waiting() const {
  const auto found =
      std::find_if(unmet_.begin(), unmet_.end(), [](auto unmet) { return unmet > 0; });
  return found == unmet_.end() ? -1 : static_cast<std::int32_t>(found - unmet_.begin());
}

void ReadySteps::release(std::int32_t index, bool arithmetic, bool messages) {
  for (const auto next : successors_[static_cast<std::size_t>(index)]) {
    const bool message = is_exchange(step(next).kind);
    if (!(message ? messages : arithmetic)) continue;
    if (--unmet_[static_cast<std::size_t>(next)] > 0) continue;
    if (message) {
      messages_.push_back(next);
    } else {
      arithmetic_.push_back(next);
      std::push_heap(arithmetic_.begin(), arithmetic_.end(), std::greater<>());
    }
  }
}

}  // namespace atl
