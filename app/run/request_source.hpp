#pragma once
// The requests of a run, on rank 0: read by a thread of its own, so that the first of a long file
// are served while the others are still read.

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "app/run/identity.hpp"
#include "app/run/request_list.hpp"
#include "app/run/shards.hpp"
#include "io/requests.hpp"

namespace atl {

/// All of a file is read through once, for what must be known of all: equal ids, errors, how much
/// there is to do. Of what then waits only so many bytes are held; what is beyond them is read
/// again, by the same thread, when its turn comes.
class RequestSource : public RequestList {
 public:
  /// Reads the beginning of the file; with `shard` keeps its requests only. With `names`, names()
  /// has them. Holds about `held_bytes` of requests at most; what is no file, and cannot be read
  /// again, is held as a whole. Throws Error as io::RequestReader does.
  RequestSource(const std::string& path, const io::RequestLimits& limits,
                std::optional<Shard> shard, bool names = false,
                std::int64_t held_bytes = std::int64_t{64} << 20);
  /// What has not been read yet is left.
  ~RequestSource() override;
  RequestSource(const RequestSource&) = delete;
  RequestSource& operator=(const RequestSource&) = delete;

  /// Waits for more requests, and takes all that the thread has; false when there are none left.
  /// Throws Error when the file cannot be read any more.
  bool take_more();
  void take_all();
  /// Takes what the thread has, without a wait. Throws as take_more() does.
  void take_ready();

  bool all_taken() const { return all_taken_; }
  /// Lines whose requests were taken, those of other shards with them.
  std::int64_t num_taken() const { return static_cast<std::int64_t>(sums_.size()); }
  /// [requests], as io::name_of() has them, where they were asked for.
  const std::vector<std::string>& names() const { return names_; }

  /// What the identity of a run says of the requests taken so far.
  InputFacts facts() const;
  /// The same as another run said it that had read fewer of them: so that the two compare. `input`
  /// is what it said.
  InputFacts facts_like(const std::string& input) const;

  void expect(const std::vector<std::int32_t>& requests) override;
  const io::Request& whole(std::size_t request) override;
  io::Request give(std::size_t request) override;
  void forget(std::size_t request) override;
  /// How many requests are held as they are.
  std::size_t num_held() const { return held_.size(); }

 private:
  struct Reading;
  struct Block;
  struct Fetched;
  void take(Block& block);
  void take(Fetched& fetched);
  enum class WaitFor { nothing, requests, fetched };
  void take_from_thread(WaitFor what);
  /// The request that begins its line.
  std::size_t first_part(std::size_t request) const;
  void ask(std::size_t request, bool at_once);
  bool draws(std::int64_t first_requests) const;

  std::deque<std::uint64_t> sums_;  // [lines], checksum over all requests up to each
  std::vector<std::string> names_;
  std::optional<std::int64_t> first_drawing_;
  bool all_taken_ = false;
  std::unordered_map<std::size_t, io::Request> held_;
  std::unordered_set<std::size_t> asked_;  // first parts of lines that the thread is to read again
  std::unique_ptr<Reading> reading_;
};

}  // namespace atl
