#include "app/plan/flows.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>

namespace atl {

namespace {
constexpr double never = std::numeric_limits<double>::infinity();
/// Of a link: rounding may leave nothing for the last of its flows.
constexpr double least_rate = 1e-9;
}  // namespace

Flows::Flows(const Network& network, double grain)
    : network_(network),
      grain_(grain),
      on_link_(static_cast<std::size_t>(network.num_links())),
      is_touched_(on_link_.size()),
      share_at_(never),
      left_(on_link_.size()),
      unfixed_(on_link_.size()),
      link_seen_(on_link_.size()),
      bytes_of_link_(on_link_.size()),
      busy_of_link_(on_link_.size()),
      busy_since_(on_link_.size()) {}

void Flows::touch(const Flow& flow) {
  for (const std::int32_t link : flow.path.all()) {
    if (is_touched_[static_cast<std::size_t>(link)] != 0) continue;
    is_touched_[static_cast<std::size_t>(link)] = 1;
    touched_.push_back(link);
  }
}

void Flows::begin(double now, const LinkPath& path, double bytes, std::int64_t tag) {
  std::int32_t index = 0;
  if (free_flows_.empty()) {
    index = static_cast<std::int32_t>(flows_.size());
    flows_.emplace_back();
  } else {
    index = free_flows_.back();
    free_flows_.pop_back();
  }
  Flow& flow = flows_[static_cast<std::size_t>(index)];
  flow = Flow{};
  flow.path = path;
  flow.bytes_left = bytes;
  flow.since = flow.begun = now;
  flow.tag = tag;
  double least = path.most_bytes_per_s > 0 ? path.most_bytes_per_s : never;
  for (int i = 0; i < path.count; ++i) {
    const auto link = static_cast<std::size_t>(path.links[static_cast<std::size_t>(i)]);
    if (on_link_[link].empty()) busy_since_[link] = now;
    flow.position[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(on_link_[link].size());
    on_link_[link].push_back(index);
    bytes_of_link_[link] += bytes;
    least = std::min(least, network_.capacity(static_cast<int>(link)));
  }
  if (path.count == 0) {  // nothing is shared: it ends as its own limit lets it
    Component& alone = components_[static_cast<std::size_t>(flow.component = take_component())];
    alone.flows = {index};
    flow.rate = least;
    alone.ends = flow.ends = now + (least < never ? bytes / least : 0);
    due_.push({alone.ends, flow.component});
    return;
  }
  touch(flow);
  // Alone it would take so long; what else begins within a grain of that is waited for.
  share_at_ = std::min(share_at_, now + grain_ * bytes / least);
}

double Flows::next() const {
  return due_.empty() ? share_at_ : std::min(share_at_, due_.top().time);
}

std::int32_t Flows::take_component() {
  std::int32_t index = 0;
  if (free_components_.empty()) {
    index = static_cast<std::int32_t>(components_.size());
    components_.emplace_back();
  } else {
    index = free_components_.back();
    free_components_.pop_back();
  }
  components_[static_cast<std::size_t>(index)].current = true;
  return index;
}

void Flows::end(std::int32_t index, double now) {
  Flow& flow = flows_[static_cast<std::size_t>(index)];
  touch(flow);
  for (int i = 0; i < flow.path.count; ++i) {
    const auto link = static_cast<std::size_t>(flow.path.links[static_cast<std::size_t>(i)]);
    auto& list = on_link_[link];
    const auto position = static_cast<std::size_t>(flow.position[static_cast<std::size_t>(i)]);
    list[position] = list.back();
    list.pop_back();
    if (position < list.size()) {
      Flow& moved = flows_[static_cast<std::size_t>(list[position])];
      for (int j = 0; j < moved.path.count; ++j) {
        if (moved.path.links[static_cast<std::size_t>(j)] == static_cast<std::int32_t>(link)) {
          moved.position[static_cast<std::size_t>(j)] = static_cast<std::int32_t>(position);
        }
      }
    }
    if (list.empty()) busy_of_link_[link] += now - busy_since_[link];
  }
  free_flows_.push_back(index);
}

void Flows::advance(double now, std::vector<std::int64_t>& ended) {
  while (!due_.empty() && due_.top().time <= now) {
    const Due due = due_.top();
    due_.pop();
    Component& component = components_[static_cast<std::size_t>(due.component)];
    if (component.current && component.ends == due.time) {
      for (const std::int32_t index : component.flows) {
        Flow& flow = flows_[static_cast<std::size_t>(index)];
        flow.component = -1;
        // Those that would end within a grain end together, half of it early, half of it late.
        if (flow.ends <= due.time + 0.5 * grain_ * (due.time - flow.begun)) {
          ended.push_back(flow.tag);
          end(index, now);
        } else {
          share_at_ = now;
        }
      }
      component.flows.clear();
      component.current = false;
      free_components_.push_back(due.component);
    }
  }
  if (share_at_ <= now) share(now);
}

/// All flows that share links with those of `seed`, over however many others.
void Flows::collect(std::int32_t seed) {
  found_.clear();
  links_.clear();
  const auto see = [this](std::int32_t link) {
    if (link_seen_[static_cast<std::size_t>(link)] == round_) return;
    link_seen_[static_cast<std::size_t>(link)] = round_;
    links_.push_back(link);
  };
  see(seed);
  for (std::size_t i = 0; i < links_.size(); ++i) {
    for (const std::int32_t index : on_link_[static_cast<std::size_t>(links_[i])]) {
      Flow& flow = flows_[static_cast<std::size_t>(index)];
      if (flow.seen == round_) continue;
      flow.seen = round_;
      found_.push_back(index);
      for (const std::int32_t other : flow.path.all()) see(other);
    }
  }
}

void Flows::share(double now) {
  share_at_ = never;
  ++round_;
  ++times_shared_;
  for (const std::int32_t link : touched_) is_touched_[static_cast<std::size_t>(link)] = 0;
  const std::vector<std::int32_t> touched = std::exchange(touched_, {});
  for (const std::int32_t link : touched) {
    if (link_seen_[static_cast<std::size_t>(link)] == round_) continue;
    collect(link);
    if (!found_.empty()) share_found(now);
  }
}

/// A component is what is connected by links: whatever changes in it, all of it is found again.
void Flows::share_found(double now) {
  for (const std::int32_t index : found_) {
    Flow& flow = flows_[static_cast<std::size_t>(index)];
    if (flow.component >= 0) {
      Component& before = components_[static_cast<std::size_t>(flow.component)];
      if (before.current) {
        before.current = false;
        before.flows.clear();
        free_components_.push_back(flow.component);
      }
    }
    flow.bytes_left = std::max(0.0, flow.bytes_left - flow.rate * (now - flow.since));
    flow.since = now;
  }
  for (const std::int32_t index : found_) flows_[static_cast<std::size_t>(index)].component = -1;
  fill(found_);
  const std::int32_t number = take_component();
  Component& component = components_[static_cast<std::size_t>(number)];
  component.flows = found_;
  double first = never;
  double first_begun = now;
  for (const std::int32_t index : found_) {
    Flow& flow = flows_[static_cast<std::size_t>(index)];
    flow.component = number;
    flow.ends = now + flow.bytes_left / flow.rate;
    if (flow.ends < first) {
      first = flow.ends;
      first_begun = flow.begun;
    }
  }
  component.ends = first + 0.5 * grain_ * (first - first_begun);
  due_.push({component.ends, number});
}

void Flows::fix(Flow& flow, double rate) {
  flow.fixed = true;
  flow.rate = rate;
  for (const std::int32_t link : flow.path.all()) {
    left_[static_cast<std::size_t>(link)] -= rate;
    --unfixed_[static_cast<std::size_t>(link)];
  }
}

/// Rates rise alike until a link is full, which fixes those of its flows; the others rise on.
void Flows::fill(std::span<const std::int32_t> flows) {
  heap_.clear();
  for (const std::int32_t link : links_) {
    const auto l = static_cast<std::size_t>(link);
    left_[l] = network_.capacity(link);
    unfixed_[l] = static_cast<std::int32_t>(on_link_[l].size());
    if (unfixed_[l] > 0) heap_.emplace_back(left_[l] / unfixed_[l], link);
  }
  // A limit of a flow's own is as a link that it has to itself: numbered below 0.
  for (const std::int32_t index : flows) {
    Flow& flow = flows_[static_cast<std::size_t>(index)];
    flow.fixed = false;
    const double most = flow.path.most_bytes_per_s;
    if (most > 0) heap_.emplace_back(most, -1 - index);
  }
  std::make_heap(heap_.begin(), heap_.end(), std::greater<>());
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
    const auto [share, link] = heap_.back();
    heap_.pop_back();
    if (link < 0) {
      Flow& flow = flows_[static_cast<std::size_t>(-1 - link)];
      if (!flow.fixed) fix(flow, share);
      continue;
    }
    const auto l = static_cast<std::size_t>(link);
    if (unfixed_[l] == 0) continue;
    // What others took less is this link's: its share has not fallen since it was put here.
    const double now = std::max(least_rate * network_.capacity(link), left_[l] / unfixed_[l]);
    if (now > share * (1 + 1e-9) && !heap_.empty()) {
      heap_.emplace_back(now, link);
      std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
      continue;
    }
    for (const std::int32_t index : on_link_[l]) {
      Flow& flow = flows_[static_cast<std::size_t>(index)];
      if (!flow.fixed) fix(flow, now);
    }
  }
}

}  // namespace atl
