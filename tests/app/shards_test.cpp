// Runs that share their requests: whose a request is, what their parts say, and that joining them
// takes nothing that is missing, damaged or of another run.

#include "app/run/shards.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <fstream>
#include <map>

#include "app/run/join.hpp"
#include "app/run/results.hpp"
#include "io/journal.hpp"
#include "tests/fixtures.hpp"

namespace atl {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void set_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

const ordered_json identity = {{"model", "1234"}, {"dtype", "bfloat16"}};

class Shards : public FolderTest {
 protected:
  std::string part(int index, int count) const { return part_path(output_, {index, count}); }
  static std::string result(int request) { return "{\"id\":\"" + std::to_string(request) + "\"}"; }
  /// A part as a run leaves it, of requests on every second line.
  static std::string part_text(const Shard& shard, int requests,
                               const ordered_json& run = identity) {
    std::string text = part_header({run, shard, requests});
    for (int i = shard.index; i < requests; i += shard.count) {
      text += io::journal_line(2 * i + 1, result(i));
    }
    return text;
  }
  void write_parts(int count, int requests) const {
    for (int i = 0; i < count; ++i) set_text(part(i, count), part_text({i, count}, requests));
  }
  static std::string expected(int requests) {
    std::string text;
    for (int i = 0; i < requests; ++i) text += result(i) + "\n";
    return text;
  }
  void join(int shards = 0, bool keep = false) const { join_parts({output_, shards, keep}); }
  std::string refusal() const {
    return error_of([this] { join(); });
  }

  const std::string output_ = path("results \xe9.jsonl");  // Latin-1, as some systems have them
};

TEST(Shard, IsReadFromItsText) {
  EXPECT_EQ(shard_of("0/2").text(), "0/2");
  EXPECT_EQ(shard_of("11/12").text(), "11/12");
  EXPECT_EQ(shard_of("0/1").count, 1);
  const auto refusal = [](const std::string& text) { return error_of([&] { shard_of(text); }); };
  EXPECT_NE(refusal("2/2").find("numbers 0 to 1"), std::string::npos);
  EXPECT_NE(refusal("2/2").find("--array=0-1"), std::string::npos);
  for (const char* text : {"", "/", "1", "1/", "/2", "0/0", "-1/2", "1/-2", "a/b", "0/2/3", " 0/2",
                           "0/2 ", "1.0/2", "0/99999999999", "0x0/2"}) {
    EXPECT_NE(refusal(text).find("--shard " + std::string(text)), std::string::npos) << text;
  }
}

TEST(Shard, EveryRequestIsInOne) {
  for (int count = 1; count <= 6; ++count) {
    for (int requests = 0; requests <= 8; ++requests) {
      std::map<std::int64_t, int> seen;
      for (int index = 0; index < count; ++index) {
        const Shard shard{index, count};
        std::int64_t mine = 0;
        for (std::int64_t i = 0; i < requests; ++i) {
          if (!shard.has(i)) continue;
          ++mine;
          ++seen[i];
        }
        EXPECT_EQ(mine, shard.share_of(requests));
      }
      EXPECT_EQ(seen.size(), static_cast<std::size_t>(requests));
      for (const auto& [line, times] : seen) EXPECT_EQ(times, 1);
    }
  }
}

TEST_F(Shards, JoinInTheOrderOfTheInput) {
  for (int count = 1; count <= 5; ++count) {
    for (int requests = 1; requests <= 7; ++requests) {
      write_parts(count, requests);
      join();
      EXPECT_EQ(text_of(output_), expected(requests));
      EXPECT_TRUE(parts_beside(output_).empty()) << "the parts stay";
      join();  // again: nothing to do
      EXPECT_EQ(text_of(output_), expected(requests));
    }
  }
}

TEST_F(Shards, PartsStayWhereTheyAreKept) {
  write_parts(2, 3);
  join(2, true);
  EXPECT_EQ(parts_beside(output_).size(), 2U);
  EXPECT_EQ(text_of(output_), expected(3));
}

TEST_F(Shards, AMissingPartIsNamed) {
  EXPECT_NE(refusal().find("nothing to join"), std::string::npos);
  write_parts(3, 5);
  fs::remove(part(1, 3));
  EXPECT_NE(refusal().find(part(1, 3) + " (compute its shard)"), std::string::npos);
  EXPECT_NE(refusal().find("atoll run --shard 1/3"), std::string::npos);
  set_text(part(1, 3) + ".journal", "");
  EXPECT_NE(refusal().find("has not finished"), std::string::npos);
  EXPECT_FALSE(fs::exists(output_));
  EXPECT_EQ(parts_beside(output_).size(), 2U) << "what is there is kept";
}

TEST_F(Shards, PartsOfSeveralRunsAreNotMixed) {
  set_text(output_, "earlier\n");
  write_parts(2, 3);
  set_text(part(1, 2), part_text({1, 2}, 3, {{"model", "1234"}, {"dtype", "float32"}}));
  EXPECT_NE(refusal().find("dtype was bfloat16 and is float32"), std::string::npos);
  set_text(part(1, 2), part_text({1, 2}, 5));
  EXPECT_NE(refusal().find("requests was 3 and is 5"), std::string::npos);
  set_text(part(1, 2), part_text({0, 2}, 3));  // copied to a wrong name
  EXPECT_NE(refusal().find("is of shard 0/2"), std::string::npos);
  write_parts(2, 3);
  write_parts(3, 3);
  EXPECT_NE(refusal().find("runs in 2 and 3 shards"), std::string::npos);
  EXPECT_EQ(text_of(output_), "earlier\n");
  join(3);
  EXPECT_EQ(text_of(output_), expected(3));
}

TEST_F(Shards, NoCutIsTakenForAWholePart) {
  set_text(output_, "earlier\n");
  write_parts(2, 4);
  const std::string whole = text_of(part(1, 2));
  for (std::size_t cut = 0; cut < whole.size(); ++cut) {
    set_text(part(1, 2), whole.substr(0, cut));
    EXPECT_FALSE(refusal().empty()) << "cut at " << cut;
    EXPECT_EQ(finished_before(output_, {1, 2}, identity), "") << "cut at " << cut;
  }
  EXPECT_EQ(text_of(output_), "earlier\n");
  EXPECT_FALSE(fs::exists(output_ + ".partial"));
}

TEST_F(Shards, NoDamagedBytePasses) {
  write_parts(2, 4);
  const std::string whole = text_of(part(0, 2));
  for (std::size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    set_text(part(0, 2), damaged);
    EXPECT_FALSE(refusal().empty()) << "byte " << at;
  }
  const std::size_t last = whole.rfind('\n', whole.size() - 2) + 1;
  set_text(part(0, 2), whole + whole.substr(last));
  EXPECT_FALSE(refusal().empty()) << "a line twice";
  set_text(part(0, 2), whole + io::journal_line(99, "{}"));
  EXPECT_NE(refusal().find("more lines"), std::string::npos);
  EXPECT_FALSE(fs::exists(output_));
}

TEST_F(Shards, AnInterruptedRemovalIsCompleted) {
  write_parts(3, 5);
  join(3, true);
  fs::remove(part(0, 3));
  join();
  EXPECT_EQ(text_of(output_), expected(5));
  EXPECT_TRUE(parts_beside(output_).empty());
  // Not where the output is not the one that was made of them.
  write_parts(3, 5);
  join(3, true);
  fs::remove(part(0, 3));
  set_text(output_, "another\n");
  EXPECT_NE(refusal().find("1 of 3 parts are missing"), std::string::npos);
  EXPECT_EQ(text_of(output_), "another\n");
}

TEST_F(Shards, NothingServedIsSaidOfAllShardsTogether) {
  const auto write = [this](const std::string& first, const std::string& second) {
    set_text(part(0, 2), part_header({identity, {0, 2}, 2}) + io::journal_line(1, first));
    set_text(part(1, 2), part_header({identity, {1, 2}, 2}) + io::journal_line(2, second));
  };
  const std::string error = R"({"line":1,"error":"not JSON"})";
  write(error, result(1));
  join();
  write(error, error);
  EXPECT_THROW(join(), NothingServed);
  EXPECT_EQ(text_of(output_), error + "\n" + error + "\n");
  EXPECT_TRUE(parts_beside(output_).empty());
  EXPECT_THROW(join(), NothingServed) << "again";
}

TEST_F(Shards, OneJoinAtATime) {
  write_parts(2, 3);
  const int other = open(part(0, 2).c_str(), O_RDONLY);
  ASSERT_EQ(flock(other, LOCK_EX), 0);
  EXPECT_NE(refusal().find("another atoll join"), std::string::npos);
  close(other);
  join();
  EXPECT_EQ(text_of(output_), expected(3));
}

TEST_F(Shards, OutputsAreFiles) {
  const auto refusal_for = [](const std::string& output) {
    return error_of([&] { join_parts({output, 0, false}); });
  };
  EXPECT_NE(refusal_for("/dev/null").find("no regular file"), std::string::npos);
  EXPECT_NE(refusal_for(folder_.string()).find("no regular file"), std::string::npos);
  EXPECT_NE(refusal_for(path("none/out")).find("cannot read"), std::string::npos);
  fs::create_symlink(output_, path("link"));
  write_parts(2, 3);
  join_parts({path("link"), 0, false});
  EXPECT_TRUE(fs::is_symlink(path("link")));
  EXPECT_EQ(text_of(output_), expected(3));
}

TEST_F(Shards, WhatIsFinishedIsNotComputedAgain) {
  EXPECT_EQ(finished_before(output_, {1, 2}, identity), "");
  write_parts(2, 4);
  EXPECT_NE(finished_before(output_, {1, 2}, identity).find("its 2 results"), std::string::npos);
  const ordered_json other = {{"model", "99"}, {"dtype", "bfloat16"}};
  EXPECT_NE(error_of([&] {
              finished_before(output_, {1, 2}, other);
            }).find("model was 1234"),
            std::string::npos);
  join();
  EXPECT_NE(finished_before(output_, {1, 2}, identity).find("of all shards"), std::string::npos);
  EXPECT_EQ(finished_before(output_, {1, 2}, other), "");
  set_text(output_, "changed\n");
  EXPECT_EQ(finished_before(output_, {1, 2}, identity), "");
}

TEST_F(Shards, OtherFilesAreNoParts) {
  for (const char* name : {".shard-0-of-2.journal", ".shard-0-of-2.partial", ".shard-2-of-2",
                           ".shard--1-of-2", ".shard-0-of-", ".shard-of-2", ".shard-0"}) {
    set_text(output_ + name, "x");
  }
  EXPECT_TRUE(parts_beside(output_).empty());
  set_text(output_ + ".shard-0-of-1", "somebody's own file\n");
  EXPECT_NE(refusal().find("does not begin as a part"), std::string::npos);
}

}  // namespace
}  // namespace atl
