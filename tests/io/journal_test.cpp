// The journal of finished results: what a killed run leaves is found, whatever was torn.

#include "io/journal.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "compute/error.hpp"
#include "tests/fixtures.hpp"

namespace atl::io {
namespace {

namespace fs = std::filesystem;

class Journal : public FolderTest {
 protected:
  std::string text() const {
    std::ifstream file(output_ + ".journal", std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void set_text(const std::string& text) const {
    std::ofstream(output_ + ".journal", std::ios::binary) << text;
  }
  void write_two() const {
    ResultJournal journal(output_, false);
    journal.start(R"({"run":1})");
    journal.append(journal_line(3, R"({"id":"c"})") + journal_line(1, R"({"id":"a \n"})"));
    journal.sync();
  }

  const std::string output_ = path("results.jsonl");
};

TEST_F(Journal, KeepsResultsForTheNextRun) {
  write_two();
  ResultJournal journal(output_, false);
  EXPECT_EQ(journal.header(), R"({"run":1})");
  EXPECT_EQ(journal.num_results(), 2);
  EXPECT_EQ(journal.num_damaged(), 0);
  EXPECT_EQ(journal.result(1), R"({"id":"a \n"})");
  EXPECT_EQ(journal.result(3), R"({"id":"c"})");
  EXPECT_FALSE(journal.has(2));
  journal.resume();
  journal.append(journal_line(2, "{}"));
  EXPECT_EQ(journal.result(2), "{}");
  journal.remove();
  EXPECT_TRUE(fs::is_empty(folder_));
}

/// Their reasons are there for the end of the run, and no results for the next one.
TEST_F(Journal, KeepsWhyLinesWereRefusedForThisRunAlone) {
  {
    ResultJournal journal(output_, false);
    journal.start(R"({"run":1})");
    journal.append(journal_line(-2, R"({"line":2,"error":"no"})"));
    EXPECT_EQ(journal.num_results(), 0);
    EXPECT_EQ(journal.result(-2), R"({"line":2,"error":"no"})");
    EXPECT_FALSE(journal.has(2));
    journal.append(journal_line(5, std::string(10000, 'x')));
    EXPECT_EQ(journal.num_results(), 1);
    EXPECT_EQ(journal.result(5), std::string(10000, 'x'));
  }
  {
    ResultJournal journal(output_, false);
    EXPECT_EQ(journal.num_results(), 1);
    EXPECT_EQ(journal.num_damaged(), 0);
    EXPECT_FALSE(journal.has(-2));
    journal.resume();
    journal.append(journal_line(5, "{}"));  // computed again
    EXPECT_EQ(journal.result(5), "{}");
    journal.append(journal_line(6, "{}"));
  }
  ResultJournal journal(output_, false);
  EXPECT_EQ(journal.num_results(), 2);
  EXPECT_EQ(journal.result(5), "{}");
  journal.drop([](std::int64_t line) { return line == 5; });
  EXPECT_EQ(journal.num_results(), 1);
  EXPECT_FALSE(journal.has(5));
}

TEST_F(Journal, EveryCutCostsAtMostTheLastLine) {
  write_two();
  const std::string whole = text();
  const std::size_t header = whole.find('\n') + 1;
  const std::size_t first = whole.find('\n', header) + 1;
  for (std::size_t cut = 0; cut < whole.size(); ++cut) {
    set_text(whole.substr(0, cut));
    ResultJournal journal(output_, false);
    EXPECT_EQ(journal.num_results(), cut >= first ? 1 : 0) << cut;
    EXPECT_EQ(journal.header().empty(), cut < header) << cut;
    if (cut < first) continue;
    journal.resume();
    journal.append(journal_line(1, "{}"));
    EXPECT_EQ(journal.result(3), R"({"id":"c"})");
    EXPECT_EQ(journal.result(1), "{}");
  }
}

TEST_F(Journal, NoFlippedBitChangesAResult) {
  write_two();
  const std::string whole = text();
  for (std::size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string bad = whole;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    set_text(bad);
    if (bit < 8 * std::string_view(R"({"line":)").size()) {  // it may be anybody's file
      EXPECT_THROW(ResultJournal(output_, false), Error) << bit;
      EXPECT_EQ(text(), bad) << bit;
      continue;
    }
    const ResultJournal journal(output_, false);
    // A flip that is not noticed (of a checksum digit's case) leaves everything as it was.
    EXPECT_TRUE(journal.num_damaged() > 0 || journal.num_results() == 2) << bit;
    if (journal.has(1)) {
      EXPECT_EQ(journal.result(1), R"({"id":"a \n"})") << bit;
    }
    if (journal.has(3)) {
      EXPECT_EQ(journal.result(3), R"({"id":"c"})") << bit;
    }
    EXPECT_LE(journal.num_results(), 2);
  }
}

TEST_F(Journal, RefusesAndKeepsWhatIsNoJournal) {
  const std::string path = output_ + ".journal";
  for (const std::string other : {"a diary\n", "{}", "{\"id\": \"a\"}\n", "\n"}) {
    set_text(other);
    EXPECT_THROW(ResultJournal(output_, false), Error) << other;
    EXPECT_EQ(text(), other);
  }
  set_text("");  // empty, but another's until the run starts
  { const ResultJournal journal(output_, false); }
  EXPECT_TRUE(fs::exists(path));
  fs::rename(path, folder_ / "diary");
  fs::create_symlink(folder_ / "diary", path);
  EXPECT_THROW(ResultJournal(output_, false), Error);
  fs::remove(path);
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_THROW(ResultJournal(output_, false), Error);
  EXPECT_TRUE(fs::is_fifo(path));
}

TEST_F(Journal, KeepsASecondRunOut) {
  const ResultJournal first(output_, false);
  EXPECT_THROW(ResultJournal(output_, false), Error);
}

TEST_F(Journal, NoticesThatItWasRemoved) {
  ResultJournal journal(output_, false);
  journal.start("{}");
  journal.append(journal_line(1, "{}"));
  fs::remove(output_ + ".journal");
  EXPECT_THROW(journal.sync(), Error);
}

TEST_F(Journal, LeavesNothingWhereNothingWasFinished) {
  {
    ResultJournal journal(output_, false);
    journal.start("{}");
  }
  EXPECT_TRUE(fs::is_empty(folder_));
  ResultJournal journal((folder_ / "nowhere" / "x").string(), /*in_memory=*/true);
  journal.start("{}");
  journal.append(journal_line(5, "{}"));
  EXPECT_EQ(journal.result(5), "{}");
}

}  // namespace
}  // namespace atl::io
