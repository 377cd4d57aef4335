#include "io/text_file.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "compute/error.hpp"
#include "tests/fixtures.hpp"

namespace atl::io {
namespace {

class TextFileTest : public FolderTest {
 protected:
  static std::string read(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::size_t num_files() const {
    return static_cast<std::size_t>(
        std::distance(std::filesystem::directory_iterator(folder_), {}));
  }
};

TEST_F(TextFileTest, TakesItsNameWhenWhole) {
  const std::string path = folder_ / "results";
  std::ofstream(path) << "earlier";
  TextFile file(path);
  file.write("one ");
  file.write("two");
  EXPECT_EQ(read(path), "earlier");
  file.close();
  EXPECT_EQ(read(path), "one two");
  EXPECT_EQ(num_files(), 1U);
}

TEST_F(TextFileTest, LeavesAnEarlierFileWhenItIsGivenUp) {
  const std::string path = folder_ / "results";
  std::ofstream(path) << "earlier";
  { TextFile(path).write("half"); }
  EXPECT_EQ(read(path), "earlier");
  EXPECT_EQ(num_files(), 1U);
}

TEST_F(TextFileTest, WritesWhatALinkPointsTo) {
  std::filesystem::create_directory(folder_ / "far");
  std::filesystem::create_symlink("far/results", folder_ / "link");
  for (const char* text : {"one", "two"}) {  // not there yet, and there
    TextFile file(folder_ / "link");
    EXPECT_FALSE(file.place().direct);
    EXPECT_EQ(file.place().path, (folder_ / "far/results").string());
    file.write(text);
    file.close();
    EXPECT_TRUE(std::filesystem::is_symlink(folder_ / "link"));
    EXPECT_EQ(read(folder_ / "far/results"), text);
  }
  EXPECT_EQ(num_files(), 2U);
}

TEST_F(TextFileTest, DoesNotReplaceAnOpenFile) {
  const std::string path = folder_ / "results";
  std::FILE* open = std::fopen(path.c_str(), "w");
  ASSERT_NE(open, nullptr);
  const std::string name = "/dev/fd/" + std::to_string(fileno(open));
  TextFile file(name);
  EXPECT_TRUE(file.place().direct);
  file.write("text");
  file.close();
  std::fclose(open);
  EXPECT_EQ(read(path), "text");
  EXPECT_EQ(num_files(), 1U);
}

TEST_F(TextFileTest, RefusesWhatCannotBeWritten) {
  EXPECT_THROW(TextFile(folder_ / "missing" / "results"), Error);
  EXPECT_THROW(TextFile(folder_.string()), Error);
  TextFile full("/dev/full");
  EXPECT_THROW(
      {
        full.write("no room");
        full.close();
      },
      Error);
}

}  // namespace
}  // namespace atl::io
