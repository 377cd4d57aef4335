#include "app/plan/job_walk.hpp"

#include <algorithm>

#include "compute/error.hpp"

namespace atl {

JobWalk::JobWalk(const JobLimits& limits, const std::vector<JobRequest>& requests)
    : limits_(limits), requests_(requests), passes_of_(requests.size()) {
  std::vector<WaitingRequest> waiting;
  std::uint64_t tokens = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto number = static_cast<std::int32_t>(i);
    require(pages_of(number) <= limits.num_pages,
            "a request of {} tokens and {} new ones needs a KV cache of {} tokens, and one of {} "
            "fits beside the weights; use more ranks for each copy of attention (--tp), more "
            "stages (--pp), or shorter requests",
            requests[i].prompt_tokens, requests[i].new_tokens,
            pages_of(number) * limits.page_tokens, limits.num_pages * limits.page_tokens);
    first_token_.push_back(tokens);
    tokens += static_cast<std::uint64_t>(requests[i].prompt_tokens +
                                         std::max<std::int64_t>(0, requests[i].new_tokens - 1));
    waiting.push_back(
        {number, pages_of(number), requests[i].prompt_tokens, requests[i].new_tokens, false});
  }
  waiting_.add(waiting);
  owners_.resize(static_cast<std::size_t>(limits.num_owners));
  for (Owner& owner : owners_) {
    owner.flights.resize(static_cast<std::size_t>(limits.num_flights));
    owner.free_pages = limits.num_pages;
  }
}

std::int64_t JobWalk::pages_of(std::int32_t request) const {
  const JobRequest& r = requests_[static_cast<std::size_t>(request)];
  // The last token is never put into the cache.
  const std::int64_t tokens = r.prompt_tokens + std::max<std::int64_t>(0, r.new_tokens - 1);
  return (tokens + limits_.page_tokens - 1) / limits_.page_tokens;
}

RankLoad JobWalk::load_of(const Owner& owner, int flight) const {
  RankLoad load;
  for (std::size_t f = 0; f < owner.flights.size(); ++f) {
    for (const Sequence& s : owner.flights[f]) {
      const JobRequest& r = requests_[static_cast<std::size_t>(s.request)];
      load.remaining_work += r.prompt_tokens + r.new_tokens - s.cached;
      if (static_cast<int>(f) != flight) continue;
      ++load.sequences;
      if (s.prefilling) load.prompt_tokens += s.length - s.cached;
      if (!s.prefilling) ++load.decoding;
    }
  }
  load.free_pages = owner.free_pages;
  load.free_sequences = limits_.max_sequences - load.sequences;
  return load;
}

void JobWalk::admit(int flight) {
  std::vector<RankLoad> loads;
  for (const Owner& owner : owners_) loads.push_back(load_of(owner, flight));
  // Flights have equal numbers of requests, as Passes gives them out.
  std::int64_t all = std::ssize(waiting_.waiting()), own = 0;
  for (const Owner& owner : owners_) {
    for (const auto& sequences : owner.flights) all += std::ssize(sequences);
    own += std::ssize(owner.flights[static_cast<std::size_t>(flight)]);
  }
  std::int64_t most = (all + limits_.num_flights - 1) / limits_.num_flights - own;
  for (; most > 0; --most) {
    const auto grant = waiting_.next(loads);
    if (!grant) break;
    const auto owner = static_cast<std::size_t>(grant->rank);
    const JobRequest& r = requests_[static_cast<std::size_t>(grant->request)];
    owners_[owner].flights[static_cast<std::size_t>(flight)].push_back(
        {grant->request, 0, r.prompt_tokens, true});
    owners_[owner].free_pages -= pages_of(grant->request);
  }
}

bool JobWalk::next(int num_chunks, PassCount& count, PassLoad* load) {
  for (int asked = 0; asked < limits_.num_flights; ++asked) {
    const int flight = static_cast<int>(turn_++ % limits_.num_flights);
    admit(flight);
    std::vector<RankLoad> loads;
    for (const Owner& owner : owners_) loads.push_back(load_of(owner, flight));
    count = PassCount{};
    count.most_rows = most_pass_rows(loads, limits_);
    if (count.most_rows == 0) continue;
    const int chunks = num_chunks > 0 ? num_chunks : chunk_count(count.most_rows, limits_);
    const bool prompts = std::any_of(loads.begin(), loads.end(),
                                     [](const RankLoad& l) { return l.prompt_tokens > 0; });
    count.phase = prompts ? Phase::prefill : Phase::decode;
    if (load != nullptr) *load = PassLoad{count.phase, chunks, {}, 0, 0};
    for (Owner& owner : owners_) {
      auto& sequences = owner.flights[static_cast<std::size_t>(flight)];
      std::int64_t wanted = 0;
      for (const Sequence& s : sequences) wanted += s.length - s.cached;
      std::vector<ChunkLoad>* cut = nullptr;
      if (load != nullptr) cut = &load->owners.emplace_back(static_cast<std::size_t>(chunks));
      take(sequences, std::min<std::int64_t>(wanted, limits_.max_pass_tokens), count, cut, chunks);
      finish(owner, flight, count);
    }
    if (load != nullptr) {
      load->prompt_tokens = count.prompt_tokens;
      load->new_tokens = count.new_tokens;
    }
    ++pass_;
    return true;
  }
  return false;
}

/// First of those that generate, then of prompts in order of admission; rows fill chunk after
/// chunk.
void JobWalk::take(std::vector<Sequence>& sequences, std::int64_t all_rows, PassCount& count,
                   std::vector<ChunkLoad>* chunks, int num_chunks) {
  std::int64_t rows = 0;
  double positions = 0;
  for (const bool prefill : {false, true}) {
    for (Sequence& s : sequences) {
      if (s.prefilling != prefill) continue;
      std::int64_t left = std::min(s.length - s.cached, all_rows - rows);
      if (prefill) count.prompt_tokens += left;
      while (left > 0) {
        int c = 0;
        while (chunk_end(all_rows, c, num_chunks) <= rows) ++c;
        const std::int64_t now = std::min(left, chunk_end(all_rows, c, num_chunks) - rows);
        positions += static_cast<double>(now) *
                     (static_cast<double>(s.cached) + static_cast<double>(now + 1) / 2);
        const bool last = s.cached + now == s.length;
        if (chunks != nullptr) {
          ChunkLoad& chunk = (*chunks)[static_cast<std::size_t>(c)];
          chunk.rows += now;
          chunk.segments.push_back({now, s.cached,
                                    first_token_[static_cast<std::size_t>(s.request)] +
                                        static_cast<std::uint64_t>(s.cached)});
          chunk.head_rows += limits_.scoring ? now - (last ? 1 : 0) : last ? 1 : 0;
        }
        s.cached += now;
        rows += now;
        left -= now;
      }
    }
  }
  count.rows += rows;
  count.positions = std::max(count.positions, positions);
}

/// Sequences whose tokens are all in the cache have a next one, or are done.
void JobWalk::finish(Owner& owner, int flight, PassCount& count) {
  auto& sequences = owner.flights[static_cast<std::size_t>(flight)];
  std::erase_if(sequences, [&](Sequence& s) {
    if (s.cached < s.length) return false;
    const JobRequest& r = requests_[static_cast<std::size_t>(s.request)];
    RequestPasses& passes = passes_of_[static_cast<std::size_t>(s.request)];
    if (passes.first < 0) passes.first = pass_;
    s.prefilling = false;
    bool done = limits_.scoring || r.new_tokens == 0;
    if (!done) {
      ++count.new_tokens;
      ++s.length;
      done = s.length - r.prompt_tokens >= r.new_tokens;
    }
    if (!done) return false;
    passes.last = pass_;
    owner.free_pages += pages_of(s.request);
    return true;
  });
}

}  // namespace atl
