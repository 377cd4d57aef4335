#pragma once
// Messages under way as flows: each link is shared max-min fairly by the messages that go over it,
// as progressive filling gives it (Bertsekas and Gallager, Data Networks, 6.5.2).

#include <array>
#include <cstdint>
#include <queue>
#include <span>
#include <vector>

#include "app/plan/network.hpp"

namespace atl {

/// Rates change when a flow begins or ends, and only those of flows that share links with it,
/// directly or over others. What happens within `grain` of a flow's own duration counts as at the
/// same time: rates are worked out that much more seldom.
class Flows {
 public:
  Flows(const Network& network, double grain);

  /// A message of `bytes` > 0 begins. `tag` comes back when it ends.
  void begin(double now, const LinkPath& path, double bytes, std::int64_t tag);
  /// When something ends next, or rates are to be worked out; infinity: never.
  double next() const;
  /// Goes on until next() == now; adds the tags of messages that end.
  void advance(double now, std::vector<std::int64_t>& ended);

  /// [links]: bytes that have gone over each, of messages that have ended or are under way.
  std::span<const double> bytes_of_link() const { return bytes_of_link_; }
  /// [links]: seconds during which each carried anything.
  std::span<const double> busy_of_link() const { return busy_of_link_; }
  std::int64_t times_shared() const { return times_shared_; }

 private:
  struct Flow {
    LinkPath path;
    std::array<std::int32_t, LinkPath::most> position{};  // in the lists of its links
    double bytes_left = 0, rate = 0, since = 0, begun = 0, ends = 0;
    std::int64_t tag = 0;
    std::int32_t component = -1;
    std::uint32_t seen = 0;
    bool fixed = false;
  };
  struct Component {
    std::vector<std::int32_t> flows;
    double ends = 0;
    bool current = false;
  };
  struct Due {
    double time;
    std::int32_t component;
    bool operator>(const Due& other) const { return time > other.time; }
  };

  void touch(const Flow& flow);
  void share(double now);
  void collect(std::int32_t seed);
  void share_found(double now);
  void fill(std::span<const std::int32_t> flows);
  void fix(Flow& flow, double rate);
  void end(std::int32_t flow, double now);
  std::int32_t take_component();

  const Network& network_;
  double grain_;
  std::vector<Flow> flows_;
  std::vector<std::int32_t> free_flows_, free_components_;
  std::vector<Component> components_;
  std::vector<std::vector<std::int32_t>> on_link_;  // [links], flows
  std::vector<std::int32_t> touched_;               // links whose flows changed
  std::vector<std::uint8_t> is_touched_;
  double share_at_;  // when rates are to be worked out; infinity: they are
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  std::uint32_t round_ = 0;
  // While filling, of each link:
  std::vector<double> left_;
  std::vector<std::int32_t> unfixed_;
  std::vector<std::uint32_t> link_seen_;
  std::vector<std::int32_t> links_, found_;
  std::vector<std::pair<double, std::int32_t>> heap_;
  std::vector<double> bytes_of_link_, busy_of_link_, busy_since_;
  std::int64_t times_shared_ = 0;
};

}  // namespace atl
