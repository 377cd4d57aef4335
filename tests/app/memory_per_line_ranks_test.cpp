// ranks: 1
// What rank 0 keeps of a line from its reading to the end of the run, in bytes.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <new>
#include <string>
#include <vector>

#include "app/run/request_queue.hpp"
#include "app/run/request_source.hpp"
#include "app/run/results.hpp"
#include "tests/mpi_main.hpp"
#include "tests/shared_folder.hpp"

namespace {

std::atomic<std::int64_t> in_use{0};
std::atomic<std::int64_t> most{0};

void* counted(std::size_t bytes) {
  void* memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  const std::int64_t now = in_use += static_cast<std::int64_t>(malloc_usable_size(memory));
  std::int64_t before = most;
  while (before < now && !most.compare_exchange_weak(before, now)) {
  }
  return memory;
}

void give_back(void* memory) {
  if (memory == nullptr) return;
  in_use -= static_cast<std::int64_t>(malloc_usable_size(memory));
  std::free(memory);
}

}  // namespace

// Not inlined: where the compiler sees both, it takes malloc() and delete for a mismatch.
#define NOT_INLINED __attribute__((noinline))
NOT_INLINED void* operator new(std::size_t bytes) {
  return counted(bytes);
}
NOT_INLINED void* operator new[](std::size_t bytes) {
  return counted(bytes);
}
NOT_INLINED void* operator new(std::size_t bytes, const std::nothrow_t& /*none*/) noexcept {
  return counted(bytes);
}
NOT_INLINED void operator delete(void* memory) noexcept {
  give_back(memory);
}
NOT_INLINED void operator delete[](void* memory) noexcept {
  give_back(memory);
}
NOT_INLINED void operator delete(void* memory, std::size_t /*bytes*/) noexcept {
  give_back(memory);
}
NOT_INLINED void operator delete[](void* memory, std::size_t /*bytes*/) noexcept {
  give_back(memory);
}

namespace atl {
namespace {

class Lines : public testing::Test {
 protected:
  std::string write(int count, int refused_every, int samples) {
    const std::string path = folder_ / "requests";
    std::ofstream out(path);
    for (int i = 0; i < count; ++i) {
      out << fmt::format(R"({{"id":"request-{}","prompt":"{}","max_tokens":{},"n":{}}})", i,
                         std::string(40, 'p'), i % refused_every == 0 ? "0.5" : "4", samples)
          << "\n";
    }
    return path;
  }

  /// Serves all of them as one rank does, whose requests end in the pass in which they begin.
  struct Bytes {
    std::int64_t at_end = 0;
    std::int64_t most = 0;  ///< at once
  };
  Bytes served(int lines, int refused_every = 1 << 20, int samples = 1) {
    const int broken = (lines + refused_every - 1) / refused_every;
    const int count = (lines - broken) * samples + broken;
    const std::string input = write(lines, refused_every, samples);
    const std::int64_t before = in_use;
    most = before;
    io::RequestLimits limits;
    limits.vocab = 256;
    limits.max_positions = 100;
    RequestSource source(input, limits, std::nullopt, false, /*held_bytes=*/1 << 20);
    const io::ModelText text(256);
    ResultStore store(world_);
    store.open(folder_ / "out");
    store.begin(
        source, [](const auto&) { return nlohmann::ordered_json::object(); }, false, Mode::generate,
        text);
    BatchOptions options;
    options.num_pages = 1 << 20;
    options.share_prefixes = true;
    RequestQueue queue(source, {}, options, "", [&] {
      store.refuse(source.take_refused());
      return source.take_more();
    });
    int finished = 0;
    while (queue.wait_for_next()) {
      source.take_ready();
      queue.take_new();
      store.refuse(source.take_refused());
      std::vector<RankLoad> loads(1);
      loads[0].free_pages = options.num_pages;
      loads[0].free_sequences = 64;
      std::vector<FinishedRequest> done;
      for (RequestQueue::Grant& grant : queue.grant(loads)) {
        FinishedRequest& one = done.emplace_back();
        one.request = grant.admitted.request;
        one.asked = std::move(grant.admitted.asked);
        one.result.tokens = {1, 2, 3, 4};
        one.result.logprobs = {-1, -1, -1, -1};
        one.times = {1.0 + one.request, 2.0 + one.request};
        ++finished;
      }
      store.take(done);
      loads[0].result_bytes = store.waiting_bytes();
      queue.finished(store.collect(loads));
    }
    store.refuse(source.take_refused());
    const RequestSummary summary = store.summary();
    EXPECT_EQ(summary.requests, count);
    EXPECT_EQ(summary.refused, count - finished);
    EXPECT_EQ(std::ssize(summary.per_token_s), finished);
    store.write();
    store.remove_journal();
    return {in_use - before, most - before};
  }
  /// Of one line, after buffers that are made once.
  void expect_little(int refused_every) {
    constexpr int some = 30000;
    served(some, refused_every);
    const Bytes few = served(some, refused_every);
    const Bytes many = served(3 * some, refused_every);
    const double at_end = static_cast<double>(many.at_end - few.at_end) / (2 * some);
    fmt::print("{:.1f} bytes a line\n", at_end);
    EXPECT_GT(at_end, 24);
    EXPECT_LT(at_end, 130);
    EXPECT_LT(static_cast<double>(many.most - few.most) / (2 * some), 150);
  }

  comm::Communicator world_ = comm::Communicator::world();
  SharedFolder folder_{world_};
};

/// Offset, hash of the id, checksum, place of the result, times: see app/README.md.
TEST_F(Lines, OfAnyNumberCostALittleMemoryEach) {
  expect_little(1 << 20);
}

TEST_F(Lines, ThatAreRefusedCostNoMore) {
  expect_little(1);
}

/// They are made a line at a time, however many lines the file is judged by.
TEST_F(Lines, SamplesCostNoMoreEither) {
  constexpr int samples = 256;
  served(50, 1 << 20, samples);
  const Bytes few = served(50, 1 << 20, samples);
  const Bytes many = served(250, 1 << 20, samples);
  EXPECT_LT(static_cast<double>(many.most - few.most) / (200 * samples), 150);
}

}  // namespace
}  // namespace atl
