// ranks: 1 3
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "app/run/results.hpp"
#include "compute/error.hpp"
#include "io/model_text.hpp"
#include "tests/mpi_main.hpp"
#include "tests/shared_folder.hpp"

namespace atl {
namespace {

namespace fs = std::filesystem;

constexpr int num_requests = 7;

/// As of a file that is still read.
class GrowingRequests : public ListedRequests {
 public:
  explicit GrowingRequests(const std::vector<io::Request>& requests) : ListedRequests(requests) {}
  void add(const io::Request& request) {
    entries_.push_back(entry_of(request, request.id));
    if (!request.error.empty()) refused_.push_back(refused_of(request));
  }
};

/// Request i is on line 2i + 1; the one on line 5 was refused.
std::vector<io::Request> requests() {
  std::vector<io::Request> all(num_requests);
  for (int i = 0; i < num_requests; ++i) {
    auto& request = all[static_cast<std::size_t>(i)];
    request.line = 2 * i + 1;
    request.id = "r" + std::to_string(i);
    request.tokens = {1, 2, 3};
  }
  all[2].error = "it is refused";
  return all;
}

nlohmann::ordered_json facts(const char* model) {
  return {{"model", model}, {"mode", "score"}};
}

IdentityLike identity(const char* model) {
  return [model](const auto&) { return facts(model); };
}

FinishedRequest finished(int request, float logprob) {
  FinishedRequest done;
  done.request = request;
  done.asked.line = 2 * request + 1;
  done.asked.id = "r" + std::to_string(request);
  done.result.tokens = {1, 2, 3};
  done.result.logprobs = {logprob, logprob};
  done.result.finish_reason = "length";
  return done;
}

class Results : public testing::Test {
 protected:
  /// Request i is finished on rank i mod size, later ones first.
  void finish(ResultStore& store, int from, int to, bool last_fails = false) {
    std::vector<FinishedRequest> done;
    for (int i = to - 1; i >= from; --i) {
      if (i == 2 || i % world_.size() != world_.rank()) continue;
      done.push_back(finished(i, -static_cast<float>(i)));
      if (last_fails && i == to - 1) done.back().error = "logits are not finite";
    }
    store.take(done);
    EXPECT_TRUE(done.empty());
    RankLoad mine;
    mine.result_bytes = store.waiting_bytes();
    store.collect(world_.allgather(mine));
    EXPECT_EQ(store.waiting_bytes(), 0);
  }
  void open(ResultStore& store, const std::string& path) {
    world_.agree([&] {
      if (world_.rank() == 0) store.open(path);
    });
  }
  std::vector<nlohmann::json> lines_of(const std::string& path) const {
    std::vector<nlohmann::json> lines;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
    return lines;
  }

  /// Begins with these requests, of which those that are refused are known.
  std::vector<bool> begin(ResultStore& store, RequestList& requests, const IdentityLike& identity,
                          bool resume) {
    auto finished = store.begin(requests, identity, resume, Mode::score, text_);
    for (Refused& refused : requests.take_refused()) refused_.push_back(std::move(refused));
    if (world_.rank() == 0) store.refuse(refused_);
    return finished;
  }

  comm::Communicator world_ = comm::Communicator::world();
  SharedFolder folder_{world_};
  ListedRequests requests_{requests()};
  std::vector<Refused> refused_;  // as each run finds them
  io::ModelText text_{256};
};

TEST_F(Results, AreInTheOrderOfTheInputWhoeverFinishesFirst) {
  const std::string path = folder_ / "out";
  ResultStore store(world_);
  open(store, path);
  const auto before = begin(store, requests_, identity("a"), false);
  EXPECT_EQ(before, std::vector<bool>(num_requests, false));
  finish(store, 4, 7);
  finish(store, 0, 4);
  const RequestSummary summary = store.summary();
  if (world_.rank() != 0) return;
  EXPECT_EQ(summary.requests, num_requests);
  EXPECT_EQ(summary.refused, 1);
  EXPECT_EQ(summary.failed, 0);
  EXPECT_EQ(summary.scored_tokens, 2 * (num_requests - 1));
  EXPECT_NEAR(summary.perplexity, std::exp((0 + 1 + 3 + 4 + 5 + 6) / 6.0), 1e-3);
  store.write();
  store.remove_journal();
  EXPECT_FALSE(fs::exists(path + ".journal"));
  const auto lines = lines_of(path);
  ASSERT_EQ(lines.size(), static_cast<std::size_t>(num_requests));
  for (int i = 0; i < num_requests; ++i) {
    const auto& line = lines[static_cast<std::size_t>(i)];
    EXPECT_EQ(line["id"], "r" + std::to_string(i));
    EXPECT_EQ(line.contains("error"), i == 2);
  }
  EXPECT_EQ(lines[2]["line"], 5);
}

TEST_F(Results, OfAnInterruptedRunAreKeptOnlyByTheSameRunResumed) {
  const std::string path = folder_ / "out";
  {
    ResultStore store(world_);
    open(store, path);
    begin(store, requests_, identity("a"), false);
    finish(store, 3, 6);
  }  // interrupted: the journal stays
  {
    ResultStore store(world_);
    open(store, path);
    EXPECT_THROW(begin(store, requests_, identity("a"), false),
                 comm::AgreedFailure);  // they would be lost
    EXPECT_THROW(begin(store, requests_, identity("b"), true),
                 comm::AgreedFailure);  // another model's
  }
  ResultStore store(world_);
  open(store, path);
  if (world_.rank() == 0) {
    EXPECT_EQ(store.recorded(), facts("a"));
  }
  const auto before = begin(store, requests_, identity("a"), true);
  if (world_.rank() == 0) {
    EXPECT_EQ(before, (std::vector<bool>{false, false, false, true, true, true, false}));
  }
  finish(store, 0, 3);
  finish(store, 6, 7);
  const RequestSummary summary = store.summary();
  if (world_.rank() != 0) return;
  EXPECT_EQ(summary.resumed, 3);
  EXPECT_NEAR(summary.perplexity, std::exp((0 + 1 + 3 + 4 + 5 + 6) / 6.0), 1e-3);
  store.write();
  EXPECT_EQ(lines_of(path).size(), static_cast<std::size_t>(num_requests));
}

/// As of a long file, of which the first are served while others are still read.
TEST_F(Results, OfRequestsReadLaterCountUnderAHeaderThatSpeaksOfThem) {
  const std::string path = folder_ / "out";
  const std::vector<io::Request> all = requests();
  GrowingRequests some({all.begin(), all.begin() + 3});
  const RequestList* read = &some;
  const IdentityLike read_so_far = [&](const nlohmann::ordered_json& recorded) {
    auto facts_now = facts("a");
    facts_now["input"] = recorded.is_object() ? recorded.at("input").get<std::string>()
                                              : std::to_string(read->size());
    return facts_now;
  };
  {
    ResultStore store(world_);
    open(store, path);
    begin(store, some, read_so_far, false);
    finish(store, 0, 2);
    some.add(all[3]);
    some.add(all[4]);
    finish(store, 4, 5);
  }
  read = &requests_;
  ResultStore store(world_);
  open(store, path);
  if (world_.rank() == 0) {
    EXPECT_EQ(store.recorded().at("input"), "5");
  }
  const auto before = begin(store, requests_, read_so_far, true);
  if (world_.rank() == 0) {
    EXPECT_EQ(before, (std::vector<bool>{true, true, false, false, true, false, false}));
    EXPECT_EQ(store.recorded().at("input"), "7") << "all are read now";
  }
}

TEST_F(Results, LeaveFailedRequestsOutOfWhatIsCounted) {
  const std::string path = folder_ / "out";
  ResultStore store(world_);
  open(store, path);
  begin(store, requests_, identity("a"), false);
  finish(store, 0, num_requests, /*last_fails=*/true);
  const RequestSummary summary = store.summary();
  if (world_.rank() != 0) return;
  EXPECT_EQ(summary.failed, 1);
  EXPECT_EQ(summary.refused, 1);
  EXPECT_EQ(summary.scored_tokens, 2 * (num_requests - 2));
  EXPECT_NEAR(summary.perplexity, std::exp((0 + 1 + 3 + 4 + 5) / 5.0), 1e-3);
  store.write();
  EXPECT_EQ(lines_of(path).back()["error"], "logits are not finite");
  EXPECT_NO_THROW(store.require_served());
}

TEST_F(Results, OfWhichNoneIsServedAreWrittenAndRefused) {
  auto all = requests();
  for (auto& request : all) request.error = "it is refused";
  ListedRequests refused(all);
  const std::string path = folder_ / "out";
  ResultStore store(world_);
  open(store, path);
  begin(store, refused, identity("a"), false);
  store.summary();
  if (world_.rank() != 0) return;
  store.write();
  EXPECT_EQ(lines_of(path).size(), static_cast<std::size_t>(num_requests));
  EXPECT_THROW(store.require_served(), NothingServed);
}

}  // namespace
}  // namespace atl
