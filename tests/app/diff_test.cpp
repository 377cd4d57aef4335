// Activations files and their comparison.
#include "app/run/diff.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "compute/error.hpp"
#include "io/activation_file.hpp"
#include "io/model_file.hpp"
#include "tests/fixtures.hpp"

namespace atl {
namespace {

namespace fs = std::filesystem;

class DiffTest : public FolderTest {
 protected:
  struct Request {
    std::string id;
    std::vector<std::int32_t> tokens;
  };

  /// Two layers, 1 and 4, two wide; element i of a row is 100 * layer + 10 * token + i, but for
  /// `change` in the first element of the last row of the last request in layer 4. Each request has
  /// room for one row more than it fills.
  std::string write(const std::string& name, const std::vector<Request>& requests,
                    float change = 0) const {
    io::ActivationLayout layout;
    layout.hidden = 2;
    layout.layers = {1, 4};
    layout.model = "m";
    layout.first_row = {0};
    for (const Request& r : requests) {
      layout.requests.push_back(r.id);
      layout.first_row.push_back(layout.first_row.back() +
                                 static_cast<std::int64_t>(r.tokens.size()) + 1);
    }
    io::ActivationWriter writer(path(name), layout, io::single_process);
    for (std::size_t r = 0; r < requests.size(); ++r) {
      const auto& tokens = requests[r].tokens;
      writer.write_tokens(r, 0, tokens);
      for (std::size_t layer = 0; layer < 2; ++layer) {
        std::vector<float> x;
        for (const std::int32_t token : tokens) {
          const auto base = static_cast<float>(100 * layout.layers[layer] + 10 * token);
          x.insert(x.end(), {base, base + 1});
        }
        if (layer == 1 && r + 1 == requests.size()) x[x.size() - 2] += change;
        writer.write(layer, r, 0, x);
      }
    }
    writer.close();
    return path(name);
  }

  static std::vector<LayerDifference> compare(const std::string& a, const std::string& b) {
    io::ActivationReader reader_a(a);
    io::ActivationReader reader_b(b);
    return compare_activations(reader_a, reader_b);
  }
};

TEST_F(DiffTest, FilesReadBack) {
  io::ActivationReader reader(write("a.h5", {{"one", {5, 6}}, {"two", {7}}}));
  EXPECT_EQ(reader.layout().layers, (std::vector<int>{1, 4}));
  EXPECT_EQ(reader.layout().requests, (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(reader.num_rows(0), 2);
  EXPECT_EQ(reader.tokens(0), (std::vector<std::int32_t>{5, 6}));
  std::vector<float> x(2);
  reader.read(1, 0, 1, 1, x);
  EXPECT_EQ(x, (std::vector<float>{460, 461}));
}

TEST_F(DiffTest, FindsLayerRequestAndPosition) {
  const auto a = write("a.h5", {{"one", {5, 6}}, {"two", {7, 8}}});
  const auto same = compare(a, write("b.h5", {{"two", {7, 8}}, {"one", {5, 6}}}));
  ASSERT_EQ(same.size(), 2U);
  EXPECT_EQ(same[0].largest + same[1].largest, 0);
  const auto changed = compare(a, write("c.h5", {{"one", {5, 6}}, {"two", {7, 8}}}, 2));
  EXPECT_EQ(changed[0].largest, 0);
  EXPECT_EQ(changed[1].layer, 4);
  EXPECT_EQ(changed[1].largest, 2);
  EXPECT_EQ(changed[1].mean, 0.25);  // one of eight elements
  EXPECT_EQ(changed[1].request, "two");
  EXPECT_EQ(changed[1].position, 1);
}

TEST_F(DiffTest, ComparesUntilTokensDiffer) {
  const auto a = write("a.h5", {{"one", {5, 6, 7}}});
  const auto layers = compare(a, write("b.h5", {{"one", {5, 9, 7}}}));
  EXPECT_EQ(layers[0].rows, 1);
  EXPECT_EQ(layers[0].largest, 0);
  EXPECT_THROW(compare(a, write("c.h5", {{"one", {4}}})), Error);
  EXPECT_THROW(compare(a, write("d.h5", {{"other", {5}}})), Error);
}

/// Lines that were refused have places in the file, without an id or with that of another line.
TEST_F(DiffTest, PassesOverRequestsThatWereNotComputed) {
  const auto a = write("a.h5", {{"", {}}, {"one", {5, 6}}, {"one", {}}, {"", {}}, {"nine", {9}}});
  const auto b = write("b.h5", {{"one", {}}, {"", {}}, {"one", {5, 6}}, {"two", {1}}});
  for (const auto& layers : {compare(a, b), compare(b, a)}) {
    ASSERT_EQ(layers.size(), 2U);
    EXPECT_EQ(layers[0].rows, 2);
    EXPECT_EQ(layers[0].largest + layers[1].largest, 0);
  }
  try {
    compare(b, write("c.h5", {{"", {}}, {"one", {}}, {"three", {1}}}));
    ADD_FAILURE() << "nothing in common was compared";
  } catch (const Error& error) {  // named is what was computed
    EXPECT_NE(std::string(error.what()).find("(the first of A is \"one\", of B \"three\")"),
              std::string::npos)
        << error.what();
  }
}

TEST_F(DiffTest, NoNumberIsInfinitelyFar) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto a = write("a.h5", {{"one", {5}}});
  const auto b = write("b.h5", {{"one", {5}}}, nan);
  EXPECT_TRUE(std::isinf(compare(a, b)[1].largest));
  EXPECT_EQ(compare(b, b)[1].largest, 0);
}

TEST_F(DiffTest, LeavesNothingBehindWhenUnclosed) {
  {
    io::ActivationLayout layout;
    layout.hidden = 2;
    layout.layers = {0};
    layout.requests = {"r"};
    layout.first_row = {0, 1};
    layout.model = "m";
    const io::ActivationWriter writer(path("x.h5"), layout, io::single_process);
    EXPECT_FALSE(fs::is_empty(folder_));
  }
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST(LayersOf, ReadsNumbersAndAll) {
  EXPECT_EQ(layers_of("all", 3), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(layers_of("2,0,2", 3), (std::vector<int>{0, 2}));
  for (const char* wrong : {"", "3", "-1", "a", "0,", "0;1", "99999999999"}) {
    EXPECT_THROW(layers_of(wrong, 3), UsageError) << wrong;
  }
}

}  // namespace
}  // namespace atl
