// ranks: 1 3
//
// What watchdogs tell one another.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <set>

#include "comm/communicator.hpp"
#include "comm/side_channel.hpp"
#include "compute/clock.hpp"
#include "tests/mpi_main.hpp"

namespace atl::comm {
namespace {

constexpr double patience_s = 20;

TEST(SideChannel, EveryRankHearsEveryOther) {
  const Communicator world = Communicator::world();
  SideChannel channel;
  EXPECT_FALSE(channel.connected());
  channel.connect(world.rank(), world.allgather(channel.address()), 42);
  world.barrier();
  RankState own;
  own.activity = Activity::waiting;
  own.pass = 17;
  own.layer = static_cast<std::int16_t>(world.rank());
  std::memcpy(own.what.data(), "dispatch", 8);
  channel.send_to_all(SideChannel::Kind::tell, own);
  std::set<int> heard;
  const double begin = now_seconds();
  while (static_cast<int>(heard.size()) + 1 < world.size()) {
    ASSERT_LT(now_seconds() - begin, patience_s) << "heard " << heard.size();
    SideChannel::Message message;
    if (!channel.receive(message, 50)) continue;
    EXPECT_EQ(message.kind, SideChannel::Kind::tell);
    EXPECT_EQ(message.state.pass, 17);
    EXPECT_EQ(message.state.layer, message.from);
    EXPECT_STREQ(message.state.what.data(), "dispatch");
    heard.insert(message.from);
  }
  EXPECT_FALSE(heard.contains(world.rank()));
  world.barrier();
}

TEST(SideChannel, AnotherJobsDatagramsAreIgnored) {
  const Communicator world = Communicator::world();
  SideChannel channel;
  // The last rank takes itself for one of another job.
  const bool stranger = world.rank() == world.size() - 1;
  channel.connect(world.rank(), world.allgather(channel.address()), stranger ? 1 : 2);
  world.barrier();
  channel.send_to_all(SideChannel::Kind::end, {});
  world.barrier();
  int heard = 0;
  SideChannel::Message message;
  for (int i = 0; i < 2 * world.size(); ++i) heard += channel.receive(message, 100) ? 1 : 0;
  EXPECT_EQ(heard, stranger || world.size() == 1 ? 0 : world.size() - 2);
  world.barrier();
}

TEST(SideChannel, NamesHostAndProcess) {
  const Communicator world = Communicator::world();
  SideChannel channel;
  channel.connect(world.rank(), world.allgather(channel.address()), 42);
  const std::string name = channel.name_of(world.rank());
  EXPECT_NE(name.find(fmt::format("process {})", getpid())), std::string::npos) << name;
}

}  // namespace
}  // namespace atl::comm
