#include "app/run/sequences.hpp"

#include <gtest/gtest.h>

#include "compute/error.hpp"

namespace atl {
namespace {

const std::vector<std::int32_t> prompt = {1, 2, 3, 4, 5};

TEST(Sequences, AreKeptInOrderOfAdmissionAndTheirSlotsUsedAgain) {
  Sequences sequences({3, 10, 2});
  for (const int request : {7, 8, 9}) sequences.start(request, prompt, 4);
  EXPECT_THROW(sequences.start(10, prompt, 4), Error);
  const std::int32_t freed = sequences.taken()[1];
  sequences.in_slot(freed).pages.push_back(5);
  sequences.in_slot(freed).logprobs.push_back(-1);
  sequences.in_slot(freed).cached = 5;
  sequences.in_slot(freed).request = -1;
  sequences.drop_ended();
  const Sequence& next = sequences.start(11, std::vector<std::int32_t>{6}, 2);
  EXPECT_EQ(&next, &sequences.in_slot(freed));
  EXPECT_EQ(next.length(), 1);
  EXPECT_EQ(next.cached, 0);
  EXPECT_TRUE(next.pages.empty());
  EXPECT_TRUE(next.logprobs.empty());
  std::vector<std::int32_t> requests;
  for (const auto slot : sequences.taken()) requests.push_back(sequences.in_slot(slot).request);
  EXPECT_EQ(requests, (std::vector<std::int32_t>{7, 9, 11}));
}

TEST(Sequences, SayWhatIsLeftToDo) {
  Sequences sequences({4, 10, 2});
  sequences.start(0, prompt, 4).cached = 2;            // within its prompt
  Sequence& decoding = sequences.start(1, prompt, 4);  // has one of four tokens
  decoding.cached = 5;
  EXPECT_EQ(decoding.uncached(), 0);
  decoding.tokens.push_back(6);
  EXPECT_EQ(decoding.uncached(), 1);
  EXPECT_EQ(decoding.generated().size(), 1U);
  EXPECT_EQ(decoding.generated()[0], 6);
  const RankLoad load = sequences.load();
  EXPECT_EQ(load.prompt_tokens, 3);
  EXPECT_EQ(load.decoding, 1);
  EXPECT_EQ(load.remaining_work, 3 + 4 + 3);
  EXPECT_EQ(load.free_sequences, 2);
}

}  // namespace
}  // namespace atl
