#include "io/safetensors.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "compute/error.hpp"
#include "tests/fixtures.hpp"

namespace atl::io {
namespace {

namespace fs = std::filesystem;

std::string length_bytes(std::uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>((length >> (8 * i)) & 0xff);
  return bytes;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class SafetensorsTest : public FolderTest {
 protected:
  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return (folder_ / name).string();
  }

  std::string write_file(const std::string& name, const std::string& header,
                         const std::string& data) const {
    return write(name, length_bytes(header.size()) + header + data);
  }

  /// The message for one file with this header and `data_bytes` of data.
  std::string refusal(const std::string& header, std::size_t data_bytes) const {
    const std::string file = write_file("x.safetensors", header, std::string(data_bytes, 'd'));
    const std::string message = error_of([&] { Safetensors tensors({file}); });
    EXPECT_TRUE(contains(message, "x.safetensors")) << message;
    return message;
  }
};

TEST_F(SafetensorsTest, ReadsTensorsOfSeveralFiles) {
  const std::string a = write_file(
      "a.safetensors",
      R"({"__metadata__":{"format":"pt"},"y":{"dtype":"F32","shape":[],"data_offsets":[4,8]},)"
      R"("x":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]}}   )",
      "abcdEFGH");
  const std::string b = write_file(
      "b.safetensors", R"({"z":{"dtype":"F16","shape":[3],"data_offsets":[0,6]}})", "uvwxyz");
  const Safetensors tensors({a, b});
  ASSERT_EQ(tensors.tensors().size(), 3U);
  const StoredTensor& x = tensors.tensors().at("x");
  EXPECT_EQ(x.dtype, DType::bfloat16);
  EXPECT_EQ(x.shape, (std::vector<std::int64_t>{2, 1}));
  const auto text_of = [&](const char* name) {
    const StoredTensor& tensor = tensors.tensors().at(name);
    std::string text(static_cast<std::size_t>(tensor.bytes), ' ');
    tensors.read(tensor, std::as_writable_bytes(std::span(text)));
    return text;
  };
  EXPECT_EQ(text_of("x"), "abcd");
  EXPECT_EQ(text_of("y"), "EFGH");
  EXPECT_EQ(text_of("z"), "uvwxyz");
  std::string wrong(3, ' ');
  EXPECT_THROW(tensors.read(x, std::as_writable_bytes(std::span(wrong))), Error);
}

TEST_F(SafetensorsTest, FindsTheFilesOfAFolder) {
  const auto entry = [](const char* name) {
    return std::string("{\"") + name + R"(":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}})";
  };
  EXPECT_TRUE(contains(error_of([&] { Safetensors::open_folder(folder_.string()); }),
                       "no *.safetensors file"));
  write_file("b.safetensors", entry("b"), "bb");
  write_file("c.safetensors", entry("c"), "cc");
  EXPECT_EQ(Safetensors::open_folder(folder_.string()).tensors().size(), 2U);
  write_file("model.safetensors", entry("m"), "mm");
  EXPECT_EQ(Safetensors::open_folder(folder_.string()).tensors().count("m"), 1U);

  const auto with_index = [&](const std::string& index) {
    write("model.safetensors.index.json", index);
    return Safetensors::open_folder(folder_.string()).tensors().size();
  };
  const auto index_refusal = [&](const std::string& index) {
    return error_of([&] { with_index(index); });
  };
  EXPECT_EQ(with_index(R"({"weight_map":{"b":"b.safetensors","c":"c.safetensors"}})"), 2U);
  EXPECT_TRUE(
      contains(index_refusal(R"({"weight_map":{"b":"d.safetensors"}})"), "d.safetensors: "));
  EXPECT_TRUE(contains(index_refusal(R"({"weight_map":{"b":"c.safetensors","c":"c.safetensors"}})"),
                       "tensor b is in c.safetensors, which has no such tensor"));
  EXPECT_TRUE(contains(index_refusal(R"({"weight_map":{"b":"c.safetensors","c":"b.safetensors"}})"),
                       "has no such tensor"));
  for (const char* name : {"../b.safetensors", "/etc/passwd", "", "..", "x/b.safetensors"}) {
    EXPECT_TRUE(contains(index_refusal(std::string(R"({"weight_map":{"b":")") + name + "\"}}"),
                         "same folder"))
        << name;
  }
  EXPECT_TRUE(contains(index_refusal(R"({"weight_map":{"b":7}})"), "must be a string"));
  EXPECT_TRUE(contains(index_refusal(R"({"weight_map":{}})"), "weight_map"));
  EXPECT_TRUE(contains(index_refusal(R"({})"), "weight_map"));
  EXPECT_TRUE(contains(index_refusal(R"([])"), "instead of an object"));
  EXPECT_TRUE(contains(index_refusal(R"({"weight_map")"), "not valid JSON"));
}

TEST_F(SafetensorsTest, RefusesBrokenHeaders) {
  const auto refusal_of = [&](const std::string& bytes) {
    const std::string file = write("x.safetensors", bytes);
    return error_of([&] { Safetensors tensors({file}); });
  };
  EXPECT_TRUE(contains(refusal_of(""), "too few"));
  EXPECT_TRUE(contains(refusal_of("1234567"), "too few"));
  EXPECT_TRUE(contains(refusal_of(std::string(8, '\xff')), "header length 18446744073709551615"));
  EXPECT_TRUE(contains(refusal_of(length_bytes(100'000'001) + "{}"), "header length 100000001"));
  EXPECT_TRUE(contains(refusal_of(length_bytes(3) + "{}"), "does not fit the file"));
  EXPECT_TRUE(contains(refusal("", 0), "not valid JSON"));
  EXPECT_TRUE(contains(refusal("{", 0), "not valid JSON"));
  EXPECT_TRUE(contains(refusal("{\"a\":\"\xff\"}", 0), "not valid JSON"));
  EXPECT_TRUE(contains(refusal("[1]", 0), "instead of an object"));
  EXPECT_TRUE(contains(refusal(std::string(100000, '['), 0), "nested more than 64 deep"));
  EXPECT_TRUE(contains(refusal(R"({"a":7})", 0), "must have dtype"));
  EXPECT_TRUE(contains(refusal(R"({"a":{"dtype":"F16","shape":[1]}})", 2), "must have dtype"));
  EXPECT_TRUE(contains(refusal(R"({"a":{"dtype":"F16","shape":[1],"data_offsets":[0]}})", 2),
                       "must have dtype"));
  EXPECT_TRUE(contains(refusal(R"({"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},)"
                               R"("a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}})",
                               2),
                       "\"a\" comes twice"));
  EXPECT_TRUE(
      contains(error_of([&] { Safetensors tensors({"/none.safetensors"}); }), "No such file"));
  EXPECT_TRUE(
      contains(error_of([&] { Safetensors tensors({folder_.string()}); }), "not a regular file"));
}

TEST_F(SafetensorsTest, RefusesOffsetsAndShapes) {
  const auto one = [&](const std::string& dtype, const std::string& shape,
                       const std::string& offsets, std::size_t data_bytes) {
    return refusal(R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
                       offsets + "}}",
                   data_bytes);
  };
  EXPECT_TRUE(contains(one("I64", "[1]", "[0,8]", 8), "I64"));
  EXPECT_TRUE(contains(one("F8_E4M3", "[1]", "[0,1]", 1), "F8_E4M3"));
  EXPECT_TRUE(contains(one("F16", "[2]", "[0,4]", 3), "data_offsets"));
  EXPECT_TRUE(contains(one("F16", "[2]", "[2,0]", 4), "decrease"));
  EXPECT_TRUE(contains(one("F16", "[2]", "[-4,0]", 4), "data_offsets"));
  EXPECT_TRUE(contains(one("F16", "[2]", "[0,18446744073709551615]", 4), "data_offsets"));
  EXPECT_TRUE(contains(one("F16", "[2]", "[0.0,4.0]", 4), "data_offsets"));
  EXPECT_TRUE(contains(one("F16", "[3]", "[0,4]", 4), "takes 6 bytes"));
  EXPECT_TRUE(contains(one("F16", "[-2]", "[0,4]", 4), "shape"));
  EXPECT_TRUE(contains(one("F16", "[4294967296,4294967296,2]", "[0,4]", 4), "shape"));
  EXPECT_TRUE(contains(one("F16", "[9223372036854775809,2]", "[0,4]", 4), "shape"));
  EXPECT_TRUE(contains(one("F16", "[0,9223372036854775807]", "[0,4]", 4), "shape"));
  EXPECT_TRUE(contains(one("F16", "[\"2\"]", "[0,4]", 4), "shape"));
  EXPECT_TRUE(contains(one("F16", "[2]", "[2,6]", 6), "hole"));
  EXPECT_TRUE(contains(one("F16", "[2]", "[0,4]", 6), "the file has"));
  const auto two = [&](const std::string& first, const std::string& second,
                       std::size_t data_bytes) {
    return refusal(R"({"a":{"dtype":"F16","shape":[2],"data_offsets":)" + first +
                       R"(},"b":{"dtype":"F16","shape":[2],"data_offsets":)" + second + "}}",
                   data_bytes);
  };
  EXPECT_TRUE(contains(two("[0,4]", "[2,6]", 6), "overlaps"));
  EXPECT_TRUE(contains(two("[0,4]", "[0,4]", 4), "overlaps"));
  EXPECT_TRUE(contains(two("[0,4]", "[6,10]", 10), "hole"));
}

TEST_F(SafetensorsTest, RefusesANameInTwoFiles) {
  const std::string header = R"({"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}})";
  const std::string a = write_file("a.safetensors", header, "aa");
  const std::string b = write_file("b.safetensors", header, "bb");
  const std::string message = error_of([&] { Safetensors tensors({a, b}); });
  EXPECT_TRUE(contains(message, a) && contains(message, b)) << message;
}

TEST_F(SafetensorsTest, NoticesAFileThatShrinks) {
  const std::string header = R"({"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}})";
  const std::string file = write_file("a.safetensors", header, "aabbccdd");
  const Safetensors tensors({file});
  fs::resize_file(file, fs::file_size(file) - 3);
  std::vector<std::byte> bytes(8);
  EXPECT_TRUE(contains(error_of([&] { tensors.read(tensors.tensors().at("a"), bytes); }),
                       "it ends at byte"));
}

}  // namespace
}  // namespace atl::io
