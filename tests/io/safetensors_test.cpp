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

/// A folder of tiny files, and what is said of it.
class SafetensorsFolder : public SafetensorsTest {
 protected:
  static std::string entry(const std::string& name) {
    return "\"" + name + R"(":{"dtype":"F16","shape":[1],"data_offsets":[0,2]})";
  }
  /// A file with one tensor of one element.
  void write_one(const std::string& file, const std::string& tensor,
                 const std::string& data) const {
    fs::create_directories((folder_ / file).parent_path());
    write_file(file, "{" + entry(tensor) + "}", data);
  }
  void write_index(const std::string& weight_map) const {
    write("model.safetensors.index.json", R"({"weight_map":)" + weight_map + "}");
  }
  /// The folder's tensors with their bytes, "b=bb c=cc"; what was said is in `said_`.
  std::string opened(const std::string& weights = {}) {
    said_.clear();
    const Safetensors stored = Safetensors::open_folder(
        folder_.string(), [&](const std::string& line) { said_ += line + "\n"; }, weights);
    std::string text;
    for (const auto& [name, tensor] : stored.tensors()) {
      std::string bytes(static_cast<std::size_t>(tensor.bytes), ' ');
      stored.read(tensor, std::as_writable_bytes(std::span(bytes)));
      text += (text.empty() ? "" : " ") + name + "=" + bytes + (tensor.off_index ? "!" : "");
    }
    return text;
  }
  std::string refused() {
    return error_of([&] { opened(); });
  }

  std::string said_;
};

TEST_F(SafetensorsFolder, WithoutAnIndexEveryFile) {
  EXPECT_TRUE(contains(refused(), "no *.safetensors file"));
  write_one("b.safetensors", "b", "bb");
  write_one("c.safetensors", "c", "cc");
  write_one("._b.safetensors", "b", "xx");
  write_one(".cache/b.safetensors", "b", "xx");
  write("training_args.bin", "");
  EXPECT_EQ(opened(), "b=bb c=cc");
  EXPECT_EQ(said_, "");
  write_one("consolidated.safetensors", "b", "xx");
  write_one("adapter_model.safetensors", "lora", "xx");
  EXPECT_EQ(opened(), "b=bb c=cc");
  EXPECT_TRUE(contains(said_, "adapter_model.safetensors was not read")) << said_;
}

TEST_F(SafetensorsFolder, NamesOtherFormats) {
  write("pytorch_model-00001-of-00002.bin", "");
  write("pytorch_model-00002-of-00002.bin", "");
  write("pytorch_model.bin.index.json", "{}");
  std::string message = refused();
  EXPECT_TRUE(contains(message, "pytorch_model-00001-of-00002.bin and 1 more") &&
              contains(message, "save_pretrained"))
      << message;
  write_one("adapter_model.safetensors", "lora", "xx");
  message = refused();
  EXPECT_TRUE(contains(message, "merge the adapter")) << message;
  write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n");
  EXPECT_TRUE(contains(refused(), "git lfs pull"));
}

TEST_F(SafetensorsFolder, OneFileComesBeforeTheIndex) {
  write_one("model-00001-of-00001.safetensors", "a", "ol");
  write_one("model.safetensors", "a", "ne");
  EXPECT_EQ(opened(), "a=ne");
  EXPECT_TRUE(contains(said_, "not the 1 model-*.safetensors beside it")) << said_;
  write_index(R"({"a":"model-00001-of-00001.safetensors"})");
  EXPECT_EQ(opened(), "a=ne");
  EXPECT_TRUE(contains(said_, "took ") && contains(said_, "remove one of the two")) << said_;
  fs::remove(folder_ / "model-00001-of-00001.safetensors");
  EXPECT_EQ(opened(), "a=ne");
  EXPECT_TRUE(contains(said_, "not all there")) << said_;
  for (const char* broken : {"", "{", "[]", R"({"weight_map":{}})"}) {
    write("model.safetensors.index.json", broken);
    EXPECT_EQ(opened(), "a=ne") << broken;
    EXPECT_TRUE(contains(said_, "took ") && contains(said_, "index.json")) << said_;
  }
  // An index of the same save.
  write_index(R"({"a":"model.safetensors"})");
  EXPECT_EQ(opened(), "a=ne");
  EXPECT_EQ(said_, "");
  write_one("more.safetensors", "b", "bb");
  write_index(R"({"a":"model.safetensors","b":"more.safetensors"})");
  EXPECT_EQ(opened(), "a=ne b=bb");
  EXPECT_EQ(said_, "");
}

TEST_F(SafetensorsFolder, WithoutAnIndexShardsBelongTogetherByTheirNames) {
  write_one("model-00001-of-00003.safetensors", "a", "aa");
  write_one("model-00003-of-00003.safetensors", "c", "cc");
  EXPECT_TRUE(contains(refused(), "model-00002-of-00003.safetensors is missing (2 of 3"));
  write_one("model-00002-of-00003.safetensors", "b", "bb");
  EXPECT_EQ(opened(), "a=aa b=bb c=cc");
  for (const char* other : {"model-00002-of-00002", "more-00001-of-00003", "model-00001-of-00003.x",
                            "model-00004-of-00003"}) {
    const std::string name = other + std::string(".safetensors");
    write_one(name, "d", "dd");
    const std::string message = refused();
    EXPECT_TRUE(contains(message, name) && contains(message, "remove")) << message;
    fs::remove(folder_ / name);
  }
  // No shards by their names.
  for (const char* other :
       {"x-of-3", "1-of-2", "model--of-2", "model-1-of-", "model-1-of-99999999999"})
    write_one(other + std::string(".safetensors"), other, "xx");
  opened();
  write_index(R"({"a":"model-00001-of-00003.safetensors"})");
  EXPECT_EQ(opened(), "a=aa") << "an index says which files are the model";
}

TEST_F(SafetensorsFolder, ALinkToNowhereIsAFileThatIsMissing) {
  const auto refused_link = [&](const std::string& name) {
    fs::create_symlink("nowhere", folder_ / name);
    const std::string message = refused();
    EXPECT_TRUE(contains(message, name + ": it is a symbolic link to nowhere")) << message;
    fs::remove(folder_ / name);
  };
  refused_link("model.safetensors");
  write_one("a.safetensors", "a", "aa");
  refused_link("b.safetensors");
  refused_link("model.safetensors");
  refused_link("model.safetensors.index.json");
  write_index(R"({"a":"a.safetensors","b":"b.safetensors"})");
  refused_link("b.safetensors");
  refused_link("model.safetensors");
  fs::create_symlink("nowhere", folder_ / "c.safetensors");
  EXPECT_TRUE(contains(error_of([&] { opened("c.safetensors"); }), "symbolic link to nowhere"));
  write_one("b.safetensors", "b", "bb");
  EXPECT_EQ(opened(), "a=aa b=bb") << "no part of the model";
}

TEST_F(SafetensorsFolder, TheConfigurationMayNameTheFile) {
  write_one("model.safetensors", "a", "no");
  write_one("sub/quantised.safetensors", "a", "ye");
  EXPECT_EQ(opened("sub/quantised.safetensors"), "a=ye");
  write("other.index.json", R"({"weight_map":{"a":"sub/quantised.safetensors"}})");
  EXPECT_EQ(opened("other.index.json"), "a=ye");
  EXPECT_TRUE(contains(error_of([&] { opened("../x.safetensors"); }), "transformers_weights"));
  EXPECT_TRUE(contains(error_of([&] { opened("x.safetensors"); }), "it is missing"));
}

TEST_F(SafetensorsFolder, TheIndexDecidesBetweenFiles) {
  write_one("b.safetensors", "b", "bb");
  write_one("c.safetensors", "c", "cc");
  write_one("d.safetensors", "b", "xx");
  write_index(R"({"b":"b.safetensors","c":"./c.safetensors"})");
  EXPECT_EQ(opened(), "b=bb c=cc") << "no other file is read";
  write_index(R"({"b":"b.safetensors","c":"c.safetensors","d":"d.safetensors"})");
  EXPECT_EQ(opened(), "b=bb c=cc") << "an entry for a tensor that is nowhere";
  EXPECT_TRUE(contains(said_, "of b the one in " + path("b.safetensors"))) << said_;
  write_index(R"({"b":"d.safetensors","c":"b.safetensors","d":"c.safetensors"})");
  EXPECT_EQ(opened(), "b=xx c=cc!") << "c is found where it is";
  write_index(R"({"x":"b.safetensors","y":"c.safetensors"})");
  EXPECT_EQ(opened(), "b=bb! c=cc!");
  write_one("sub/e.safetensors", "e", "ee");
  write_index(R"({"e":"sub/e.safetensors"})");
  EXPECT_EQ(opened(), "e=ee");
  write_index(R"({"e":"d.safetensors","e":"sub/e.safetensors"})");
  EXPECT_EQ(opened(), "e=ee");
  EXPECT_TRUE(contains(said_, "e comes twice; the last one counts")) << said_;
}

TEST_F(SafetensorsFolder, RefusesBrokenIndices) {
  const auto refused_with = [&](const std::string& index) {
    write("model.safetensors.index.json", index);
    return refused();
  };
  EXPECT_TRUE(contains(refused_with(R"({"weight_map":{"b":"d.safetensors"}})"), "d.safetensors: "));
  for (const char* name : {"../b.safetensors", "/etc/passwd", "", "..", ".", "x/../../b", "x/"}) {
    EXPECT_TRUE(contains(refused_with(std::string(R"({"weight_map":{"b":")") + name + "\"}}"),
                         "same folder"))
        << name;
  }
  EXPECT_TRUE(contains(refused_with(R"({"weight_map":{"b":7}})"), "is 7, must be the name"));
  EXPECT_TRUE(contains(refused_with(R"({"weight_map":{}})"), "weight_map"));
  EXPECT_TRUE(contains(refused_with(R"({})"), "weight_map"));
  EXPECT_TRUE(contains(refused_with(R"([])"), "instead of an object"));
  EXPECT_TRUE(contains(refused_with("{\n \"weight_map\""), "line 2, column 14"));
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
  EXPECT_TRUE(contains(one("I64", "[2]", "[0,8]", 8), "takes 16 bytes"));
  EXPECT_TRUE(contains(one("F8_E4M3", "[1]", "[0,2]", 2), "takes 1 bytes"));
  EXPECT_TRUE(contains(one("F3", "[-1]", "[0,2]", 2), "shape"));
  EXPECT_TRUE(contains(one("F16", "[2]", "[0,4]", 3), "it is truncated"));
  EXPECT_TRUE(contains(one("F16", "[2]", "[0,4]", 0), "it is truncated"));
  EXPECT_TRUE(contains(one("F16", "[2]", "[4,8]", 4), "tensor a ends at byte"));
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
  EXPECT_TRUE(contains(two("[0,4]", "[4,8]", 6), "it is truncated"));
  EXPECT_TRUE(contains(two("[0,4]", "[1099511627776,1099511627780]", 8), "tensor b ends at byte"));
  EXPECT_TRUE(contains(two("[0,4]", "[2,6]", 6), "overlaps"));
  EXPECT_TRUE(contains(two("[0,4]", "[0,4]", 4), "overlaps"));
  EXPECT_TRUE(contains(two("[0,4]", "[6,10]", 10), "hole"));
}

// Whoever asks for such a tensor refuses it; a folder may hold others beside the model's.
TEST_F(SafetensorsTest, KeepsTypesThatItCannotRead) {
  const std::string a = write_file("a.safetensors",
                                   R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
                                   R"("b":{"dtype":"F4","shape":[5,3],"data_offsets":[8,16]},)"
                                   R"("c":{"dtype":"BOOL","shape":[2],"data_offsets":[16,18]}})",
                                   std::string(18, 'x'));
  const Safetensors stored({a});
  for (const auto& [name, tensor] : stored.tensors())
    EXPECT_FALSE(tensor.dtype.has_value()) << name;
  EXPECT_EQ(stored.tensors().at("b").dtype_name, "F4");
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
