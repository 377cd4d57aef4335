// Files of experts' choices: what is written is read back, also by a writer that goes on, and files
// that cannot be followed are refused.
#include "io/routing_file.hpp"

#include <gtest/gtest.h>
#include <hdf5.h>

#include <cstring>
#include <fstream>
#include <numeric>

#include "tests/fixtures.hpp"

namespace atl::io {
namespace {

using RoutingFile = FolderTest;

/// Two requests of up to 3 and 2 positions, layers 1 and 2, two of five experts.
RoutingLayout small_layout() {
  RoutingLayout layout;
  layout.model = "0123456789abcdef";
  layout.num_experts = 5;
  layout.top_k = 2;
  layout.layers = {1, 2};
  layout.requests = {"a", "second"};
  layout.first_row = {0, 3, 5};
  return layout;
}

const std::vector<std::uint16_t> of_a = {0, 4, 1, 2, 3, 2, 4, 1};  // two positions
const std::vector<float> weights_of_a = {0.75F, 0.25F, 0.5F, 0.5F, 1, 0, 0.625F, 0.375F};
const std::vector<std::uint16_t> of_second = {2, 0, 0, 3};
const std::vector<float> weights_of_second = {0.5F, 0.25F, 0.125F, 0.0625F};

RoutingSums sums_of(const std::vector<std::uint16_t>& experts, const std::vector<float>& weights) {
  RoutingSummer summer;
  summer.add(experts, weights);
  return summer.sums();
}

void write_small(const std::string& file) {
  create_routing_file(file, small_layout());
  // Two ranks that know nothing of each other.
  RoutingWriter one(file, small_layout());
  RoutingWriter other(file, small_layout());
  other.write(1, 0, of_second, weights_of_second);
  other.set_rows(1, 1, sums_of(of_second, weights_of_second));
  one.write(0, 0, of_a, weights_of_a);
  one.set_rows(0, 2, sums_of(of_a, weights_of_a));
}

TEST_F(RoutingFile, IsReadBackAsItWasWritten) {
  const std::string file = path("r.h5");
  write_small(file);
  EXPECT_FALSE(std::filesystem::exists(file));
  finish_routing_file(file);
  EXPECT_FALSE(std::filesystem::exists(unfinished_routing_file(file)));
  RoutingReader reader(file);
  EXPECT_EQ(reader.layout(), small_layout());
  EXPECT_TRUE(reader.has_weights());
  EXPECT_FALSE(reader.is_trace());
  EXPECT_EQ(reader.num_rows(0), 2);
  EXPECT_EQ(reader.num_rows(1), 1);
  EXPECT_EQ(reader.sums(1), sums_of(of_second, weights_of_second));
  std::vector<std::int32_t> experts(8);
  std::vector<float> weights(8);
  reader.read(0, 0, 2, experts, weights);
  EXPECT_EQ(experts, std::vector<std::int32_t>(of_a.begin(), of_a.end()));
  EXPECT_EQ(weights, weights_of_a);
  experts.resize(4);
  weights.resize(4);
  reader.read(0, 1, 1, experts, weights);
  EXPECT_EQ(experts, (std::vector<std::int32_t>{3, 2, 4, 1}));
  reader.read(1, 0, 1, experts, {});
  EXPECT_EQ(experts, (std::vector<std::int32_t>{2, 0, 0, 3}));
  EXPECT_THROW(reader.read(1, 1, 1, experts, weights), Error);  // not filled
}

TEST_F(RoutingFile, AnotherWriterGoesOnWhereOneStopped) {
  const std::string file = path("r.h5");
  write_small(file);
  reopen_routing_file(file, small_layout());
  RoutingWriter writer(file, small_layout());
  EXPECT_EQ(writer.num_rows(0), 2);
  EXPECT_EQ(writer.sums(0), sums_of(of_a, weights_of_a));
  RoutingSummer summer = writer.summer_of(0, 2);
  EXPECT_EQ(summer.sums(), writer.sums(0));
  EXPECT_NE(error_of([&] { writer.summer_of(0, 3); }).find("2 positions of request \"a\", and 3"),
            std::string::npos);
  writer.write(0, 2, of_second, weights_of_second);
  summer.add(of_second, weights_of_second);
  auto all = of_a;
  all.insert(all.end(), of_second.begin(), of_second.end());
  auto all_weights = weights_of_a;
  all_weights.insert(all_weights.end(), weights_of_second.begin(), weights_of_second.end());
  EXPECT_EQ(summer.sums(), sums_of(all, all_weights));
  EXPECT_THROW(writer.write(0, 3, of_second, weights_of_second), Error);
  // Ended after the file was finished, before the results were: it is unfinished again.
  finish_routing_file(file);
  reopen_routing_file(file, small_layout());
  EXPECT_TRUE(std::filesystem::exists(unfinished_routing_file(file)));
  auto other = small_layout();
  other.first_row = {0, 3, 6};
  EXPECT_NE(error_of([&] { reopen_routing_file(file, other); }).find("of another run"),
            std::string::npos);
  std::filesystem::remove(unfinished_routing_file(file));
  EXPECT_NE(error_of([&] { reopen_routing_file(file, other); }).find("recorded no routing"),
            std::string::npos);
}

/// A .npy as numpy.save() writes it.
template <class T>
void write_npy(const std::string& file, const char* type, const std::string& shape,
               const std::vector<T>& values, const char* fortran = "False") {
  std::string header = "{'descr': '" + std::string(type) + "', 'fortran_order': " + fortran +
                       ", 'shape': " + shape + ", }";
  header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');
  header += '\n';
  std::ofstream out(file, std::ios::binary);
  out.write("\x93NUMPY\x01\x00", 8);
  const auto length = static_cast<std::uint16_t>(header.size());
  out.write(reinterpret_cast<const char*>(&length), 2);
  out << header;
  out.write(reinterpret_cast<const char*>(values.data()),
            static_cast<std::streamsize>(values.size() * sizeof(T)));
}

TEST_F(RoutingFile, TracesAreReadInEveryKindOfInteger) {
  const std::string file = path("t.npy");
  const auto expect_values = [&](const std::vector<std::int32_t>& wanted) {
    RoutingReader reader(file);
    EXPECT_TRUE(reader.is_trace());
    EXPECT_FALSE(reader.has_weights());
    EXPECT_EQ(reader.layout().first_row, (std::vector<std::int64_t>{0, 2}));
    EXPECT_EQ(reader.layout().layers.size(), 3U);
    EXPECT_EQ(reader.layout().top_k, 1);
    EXPECT_EQ(reader.num_rows(0), 2);
    std::vector<std::int32_t> values(3);
    reader.read(0, 1, 1, values, {});
    EXPECT_EQ(values, wanted);
  };
  write_npy<std::uint8_t>(file, "|u1", "(2, 3, 1)", {1, 2, 3, 4, 5, 255});
  expect_values({4, 5, 255});
  write_npy<std::int8_t>(file, "|i1", "(2, 3, 1)", {1, 2, 3, 4, 5, -1});
  expect_values({4, 5, -1});
  write_npy<std::uint16_t>(file, "<u2", "(2, 3, 1)", {1, 2, 3, 4, 5, 65535});
  expect_values({4, 5, 65535});
  write_npy<std::int32_t>(file, "<i4", "(2,3,1)", {1, 2, 3, 4, 5, 70000});
  expect_values({4, 5, 70000});
  write_npy<std::int64_t>(file, "<i8", "(2, 3, 1)", {1, 2, 3, 4, 5, std::int64_t{1} << 40});
  expect_values({4, 5, -1});  // no expert
}

TEST_F(RoutingFile, TracesThatAreNoneAreRefused) {
  const std::string file = path("t.npy");
  const auto refused = [&](const char* why) {
    const std::string message = error_of([&] { RoutingReader reader(file); });
    EXPECT_NE(message.find(why), std::string::npos) << message;
    EXPECT_NE(message.find(file), std::string::npos) << message;
  };
  refused("No such file");
  write_npy<float>(file, "<f4", "(1, 1, 1)", {1});
  refused("not little-endian integers");
  write_npy<std::uint16_t>(file, ">u2", "(1, 1, 1)", {1});
  refused("not little-endian integers");
  write_npy<std::uint8_t>(file, "|u1", "(2, 2)", {1, 2, 3, 4});
  refused("[2, 2], must be [tokens, layers, k]");
  write_npy<std::uint8_t>(file, "|u1", "(0, 2, 1)", {});
  refused("a dimension of 0");
  write_npy<std::uint8_t>(file, "|u1", "(2, 2, 2)", {1, 2, 3, 4, 5, 6, 7});
  refused("truncated (135 of 136 bytes)");
  write_npy<std::uint8_t>(file, "|u1", "(1, 1, 1)", {1}, "True");
  refused("Fortran order");
  std::ofstream(file, std::ios::binary) << "\x93NUMPY\x01";
  refused("no .npy file");
  std::ofstream(file, std::ios::binary) << "a text";
  refused("not an HDF5 file; give a file made by atoll run --record-routing, or a .npy");
}

TEST_F(RoutingFile, MadeChoicesNeedNeitherWeightsNorChecksums) {
  const std::string file = path("r.h5");
  write_small(file);
  finish_routing_file(file);
  const hid_t id = H5Fopen(file.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  ASSERT_GE(H5Ldelete(id, "/weights", H5P_DEFAULT), 0);
  ASSERT_GE(H5Ldelete(id, "/requests/xxh3_64", H5P_DEFAULT), 0);
  ASSERT_GE(H5Fclose(id), 0);
  RoutingReader reader(file);
  EXPECT_FALSE(reader.has_weights());
  EXPECT_FALSE(reader.sums(0));
  EXPECT_EQ(reader.num_rows(0), 2);
}

TEST_F(RoutingFile, AnotherFormatVersionIsRefused) {
  const std::string file = path("r.h5");
  write_small(file);
  finish_routing_file(file);
  const hid_t id = H5Fopen(file.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  const hid_t attribute = H5Aopen(id, "format_version", H5P_DEFAULT);
  const std::uint64_t version = 9;
  ASSERT_GE(H5Awrite(attribute, H5T_NATIVE_UINT64, &version), 0);
  H5Aclose(attribute);
  ASSERT_GE(H5Fclose(id), 0);
  EXPECT_EQ(error_of([&] { RoutingReader reader(file); }),
            "cannot read " + file + ": its format version is 9 and this program reads 1");
}

}  // namespace
}  // namespace atl::io
