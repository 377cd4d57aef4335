#include "app/run/update_folder.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>

#include "compute/error.hpp"
#include "tests/temporary_folder.hpp"

namespace atl {
namespace {

class UpdateFolderTest : public ::testing::Test {
 protected:
  std::string path(const std::string& name = "") const {
    return (folder_.path() / "control").string() + (name.empty() ? "" : "/" + name);
  }
  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories(path());
    std::ofstream(path(name)) << text;
  }
  std::string text_of(const std::string& name) const {
    std::ifstream stream(path(name));
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  std::set<std::string> files() const {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path())) {
      names.insert(entry.path().filename().string());
    }
    return names;
  }
  /// Seconds later than all looks before.
  double later() { return now_ += 1; }

 private:
  TemporaryFolder folder_;
  double now_ = 0;
};

TEST_F(UpdateFolderTest, IsMadeAndHasNone) {
  UpdateFolder folder(path());
  EXPECT_EQ(folder.waiting(later()), "");
  EXPECT_TRUE(files().empty());
}

TEST_F(UpdateFolderTest, AnUpdateWaitsUntilItIsTakenUp) {
  UpdateFolder folder(path());
  write("update.json", R"({"model": "a.h5"})");
  EXPECT_EQ(folder.waiting(later()), "a.h5");
  EXPECT_EQ(files(), std::set<std::string>{"update.json.taken"});
  write("update.json", R"({"model": "b.h5"})");  // comes meanwhile
  EXPECT_EQ(folder.waiting(later()), "a.h5");
  folder.done();
  EXPECT_EQ(text_of("update.json.done"), R"({"model": "a.h5"})");
  EXPECT_EQ(folder.waiting(later()), "b.h5");
  folder.refuse("it is damaged");
  EXPECT_EQ(folder.waiting(later()), "");
  EXPECT_EQ(files(), (std::set<std::string>{"update.json.done", "update.json.refused",
                                            "update.json.refused.txt"}));
  EXPECT_EQ(text_of("update.json.refused.txt"), "it is damaged\n");
}

TEST_F(UpdateFolderTest, IsNotLookedAtAllTheTime) {
  UpdateFolder folder(path());
  EXPECT_EQ(folder.waiting(10), "");
  write("update.json", R"({"model": "a.h5"})");
  EXPECT_EQ(folder.waiting(10.1), "");
  EXPECT_EQ(folder.waiting(10.3), "a.h5");
}

TEST_F(UpdateFolderTest, WhatIsStillBeingWrittenIsReadAgain) {
  UpdateFolder folder(path());
  for (const char* text : {"", R"({"mod)", R"({"model": "a)"}) {
    write(text == std::string() ? "update.json" : "update.json.taken", text);
    EXPECT_EQ(folder.waiting(later()), "") << text;
  }
  write("update.json.taken", R"({"model": "a.h5"})");
  EXPECT_EQ(folder.waiting(later()), "a.h5");
}

TEST_F(UpdateFolderTest, OtherTextsAreRefused) {
  UpdateFolder folder(path());
  for (const char* text : {"", "a.h5", "[]", R"({"model": 3})", R"({"model": ""})", "{}",
                           R"({"model": "a.h5", "after": 5})"}) {
    write("update.json", text);
    EXPECT_EQ(folder.waiting(later()), "");
    EXPECT_EQ(folder.waiting(later()), "");
    EXPECT_FALSE(files().contains("update.json.taken")) << text;
    EXPECT_EQ(text_of("update.json.refused"), text);
  }
  EXPECT_NE(text_of("update.json.refused.txt").find("\"after\""), std::string::npos);
  write("update.json", R"({"model": "a.h5"})");
  EXPECT_EQ(folder.waiting(later()), "a.h5");
}

TEST_F(UpdateFolderTest, TheNextRunTakesUpWhatThisOneLeaves) {
  {
    UpdateFolder folder(path());
    write("update.json", R"({"model": "a.h5"})");
    EXPECT_EQ(folder.waiting(later()), "a.h5");
  }
  EXPECT_EQ(files(), std::set<std::string>{"update.json"});
  // A run that was killed could not give it back.
  std::filesystem::rename(path("update.json"), path("update.json.taken"));
  UpdateFolder next(path());
  EXPECT_EQ(files(), std::set<std::string>{"update.json"});
  EXPECT_EQ(next.waiting(later()), "a.h5");
}

TEST_F(UpdateFolderTest, ANewerOneTakesThePlaceOfWhatIsLeft) {
  write("update.json.taken", R"({"model": "a.h5"})");
  write("update.json", R"({"model": "b.h5"})");
  UpdateFolder folder(path());
  EXPECT_EQ(files(), std::set<std::string>{"update.json"});
  EXPECT_EQ(folder.waiting(later()), "b.h5");
}

TEST_F(UpdateFolderTest, MustBeWritable) {
  write("../file", "");
  EXPECT_THROW(UpdateFolder{path("../file")}, Error);
}

}  // namespace
}  // namespace atl
