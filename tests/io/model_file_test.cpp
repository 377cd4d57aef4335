// timeout: 180
//
// Model files: what is written is read back; damage of every kind is named.
#include "io/model_file.hpp"

#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/mount.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "compute/convert.hpp"
#include "compute/error.hpp"
#include "tests/fixtures.hpp"

namespace atl::io {
namespace {

using compute::bfloat16_of;
using compute::convert;
using compute::float16_of;
using compute::float_of_bfloat16;
using compute::float_of_float16;

namespace fs = std::filesystem;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string read_bytes(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

void write_bytes(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// The message of the Error that `work` throws; fails the test when it throws none.
class ModelFile : public FolderTest {
 protected:
  static const std::vector<ModelFileWriter::Dataset>& datasets() {
    static const std::vector<ModelFileWriter::Dataset> list = {
        {"/model/norm/weight", {7}, false},
        {"/model/embed_tokens/weight", {5, 7}, false},
        {"/model/layers/0/mlp/experts/up_proj/weight", {3, 4, 7}, true},
        {"/a/weight", {2, 2}, false}};
    return list;
  }

  /// Bytes that name their place: every slab differs.
  static std::vector<std::byte> slab_bytes(std::size_t dataset, std::int64_t slab,
                                           std::int64_t size) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<std::byte>(dataset * 71 + static_cast<std::size_t>(slab) * 31 + i * 3);
    }
    return bytes;
  }

  static void write_slabs(ModelFileWriter& writer, DType dtype) {
    for (std::size_t d = 0; d < datasets().size(); ++d) {
      const auto& dataset = datasets()[d];
      const DatasetInfo info{dataset.path, dataset.shape, dtype, {}, dataset.per_expert};
      for (std::int64_t slab = 0; slab < info.num_slabs(); ++slab) {
        writer.write_slab(d, slab, slab_bytes(d, slab, info.slab_bytes()));
      }
    }
  }

  static void write_model(const std::string& path, DType dtype = DType::bfloat16,
                          const std::string& config = "{\"some\":\"configuration\"}") {
    ModelFileWriter writer(path, config, dtype, datasets(), single_process);
    write_slabs(writer, dtype);
    writer.close();
  }

  static void read_everything(const std::string& path) {
    ModelFileReader reader(path);
    for (const DatasetInfo& info : reader.datasets()) {
      std::vector<std::byte> bytes(static_cast<std::size_t>(info.slab_bytes()));
      for (std::int64_t slab = 0; slab < info.num_slabs(); ++slab) {
        reader.read_slab(info, slab, bytes);
      }
    }
  }

  bool only_file(const std::string& name) const {
    std::size_t files = 0;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      files += entry.path().filename() == name ? 0 : 1;
    }
    return files == 0;
  }
};

TEST_F(ModelFile, ReturnsWhatWasWritten) {
  for (DType dtype : {DType::bfloat16, DType::float16, DType::float32}) {
    const std::string file = path("model.h5");
    write_model(file, dtype);
    ModelFileReader reader(file);
    EXPECT_EQ(reader.config_json(), "{\"some\":\"configuration\"}");
    const std::vector<DatasetInfo> found = reader.datasets();
    ASSERT_EQ(found.size(), datasets().size());
    std::int64_t total = 0;
    for (std::size_t d = 0; d < found.size(); ++d) {
      EXPECT_EQ(found[d].path, datasets()[d].path) << "order of creation";
      EXPECT_EQ(found[d].shape, datasets()[d].shape);
      EXPECT_EQ(found[d].dtype, dtype);
      EXPECT_EQ(found[d].per_expert, datasets()[d].per_expert);
      for (std::int64_t slab = 0; slab < found[d].num_slabs(); ++slab) {
        std::vector<std::byte> bytes(static_cast<std::size_t>(found[d].slab_bytes()));
        reader.read_slab(found[d], slab, bytes);
        EXPECT_EQ(bytes, slab_bytes(d, slab, found[d].slab_bytes()));
        EXPECT_EQ(checksum_of(bytes), found[d].checksums[static_cast<std::size_t>(slab)]);
        total += found[d].slab_bytes();
      }
    }
    EXPECT_EQ(reader.bytes_read(), total);
    EXPECT_TRUE(only_file("model.h5")) << "a temporary file was left";
  }
}

TEST_F(ModelFile, IdentityTellsContentsApart) {
  write_model(path("a.h5"));
  sleep(1);  // a time stamp in the file would show
  write_model(path("b.h5"));
  EXPECT_EQ(read_bytes(path("a.h5")), read_bytes(path("b.h5")));
  write_model(path("c.h5"), DType::float16);
  write_model(path("d.h5"), DType::bfloat16, "{\"another\":1}");
  const std::uint64_t a = ModelFileReader(path("a.h5")).identity();
  EXPECT_EQ(a, ModelFileReader(path("b.h5")).identity());
  EXPECT_NE(a, ModelFileReader(path("c.h5")).identity());
  EXPECT_NE(a, ModelFileReader(path("d.h5")).identity());
}

/// A rank that has not looked through the file reads the same from it.
TEST_F(ModelFile, IsReadByItsDescription) {
  write_model(path("model.h5"));
  const ModelFileReader whole(path("model.h5"));
  ModelFileReader reader(path("model.h5"), whole.description());
  EXPECT_EQ(reader.identity(), whole.identity());
  EXPECT_EQ(reader.config_json(), whole.config_json());
  const DatasetInfo info = reader.dataset("/model/layers/0/mlp/experts/up_proj/weight");
  std::vector<std::byte> slab(static_cast<std::size_t>(info.slab_bytes()));
  reader.read_slab(info, 1, slab);
  EXPECT_EQ(slab, slab_bytes(2, 1, info.slab_bytes()));
  std::vector<std::byte> part(10);
  reader.read_part(info, 1, 7, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), slab.begin() + 7));
  EXPECT_EQ(reader.bytes_read(), info.slab_bytes() + 10);
  EXPECT_TRUE(contains(error_of([&] { reader.read_part(info, 1, info.slab_bytes() - 9, part); }),
                       "the slab has"));
  EXPECT_TRUE(contains(error_of([&] { reader.verify(info, 0, slab); }), "checksum"));

  const auto refused = [&](const std::string& file) {
    return error_of([&] { ModelFileReader other(file, whole.description()); });
  };
  EXPECT_TRUE(contains(refused(path("none.h5")), "No such file"));
  std::string bytes = read_bytes(path("model.h5"));
  const std::size_t at = static_cast<std::size_t>(whole.dataset("/a/weight").offset);
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  write_bytes(path("changed.h5"), bytes);
  EXPECT_TRUE(contains(refused(path("changed.h5")), "is not the file that rank 0 reads"));
  write_bytes(path("shorter.h5"), bytes.substr(0, bytes.size() - 1));
  EXPECT_TRUE(contains(refused(path("shorter.h5")), "is not the file that rank 0 reads"));
}

TEST_F(ModelFile, KeepsAttachments) {
  const std::vector<Attachment> attachments = {
      {"/tokenizer/numbers", 4, std::string("\1\0\0\0\0\0\0\1", 8)}, {"/tokenizer/text", 1, "abc"}};
  const auto write = [&](const fs::path& file, const std::vector<Attachment>& some) {
    ModelFileWriter writer(file.string(), "{}", DType::float32, {{"/a/weight", {2}, false}},
                           single_process, some);
    const std::array values = {1.0F, 2.0F};
    writer.write_slab(0, 0, std::as_bytes(std::span(values)));
    writer.close();
  };
  const fs::path file = folder_ / "m.h5";
  write(file, attachments);
  const ModelFileReader reader(file.string());
  EXPECT_EQ(reader.datasets().size(), 1U);
  const ModelFileReader described(file.string(), reader.description());
  EXPECT_EQ(described.identity(), reader.identity());
  EXPECT_TRUE(reader.attachments() == attachments);
  EXPECT_TRUE(described.attachments() == attachments);
  const fs::path other = folder_ / "other.h5";
  write(other, {attachments[0], {"/tokenizer/text", 1, "abd"}});
  EXPECT_NE(ModelFileReader(other.string()).identity(), reader.identity());
  const fs::path plain = folder_ / "plain.h5";
  write(plain, {});
  EXPECT_TRUE(ModelFileReader(plain.string()).attachments().empty());
  EXPECT_NE(ModelFileReader(plain.string()).identity(), reader.identity());
  // A bit of the text flips: reading names the dataset.
  std::string bytes = read_bytes(file);
  const std::size_t at = bytes.find("abc");
  ASSERT_NE(at, std::string::npos);
  bytes[at] = 'x';
  write_bytes(file, bytes);
  const ModelFileReader damaged(file.string());
  const std::string message = error_of([&] { damaged.attachments(); });
  EXPECT_TRUE(contains(message, "/tokenizer/text") && contains(message, "checksum")) << message;
}

/// The tools of HDF5 must read 16-bit floats as numbers: convert them with HDF5 itself.
TEST_F(ModelFile, StoresNumbers) {
  const std::vector<float> values = {1.0F, -2.5F, 0.0F, 0.15625F};
  for (DType dtype : {DType::bfloat16, DType::float16, DType::float32}) {
    std::vector<std::byte> bytes(values.size() * size_of(dtype));
    convert(std::as_bytes(std::span(values)), DType::float32, bytes, dtype);
    const std::string file = path("numbers.h5");
    ModelFileWriter writer(file, "{}", dtype, {{"/x/weight", {4}, false}}, single_process);
    writer.write_slab(0, 0, bytes);
    writer.close();
    const hid_t id = H5Fopen(file.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
    const hid_t dataset = H5Dopen2(id, "/x/weight", H5P_DEFAULT);
    std::vector<float> found(values.size());
    EXPECT_GE(H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, found.data()), 0);
    EXPECT_EQ(found, values) << name_of(dtype);
    H5Dclose(dataset);
    H5Fclose(id);
  }
}

TEST_F(ModelFile, NamesWhatIsWrongWithAPath) {
  EXPECT_TRUE(contains(error_of([&] { ModelFileReader reader(path("none.h5")); }),
                       "No such file or directory (working directory "));
  EXPECT_TRUE(
      contains(error_of([&] { ModelFileReader reader(folder_.string()); }), "not a regular file"));
  write_bytes(path("text.h5"), "This is no model.");
  EXPECT_TRUE(
      contains(error_of([&] { ModelFileReader reader(path("text.h5")); }), "not an HDF5 file"));
  write_bytes(path("empty.h5"), "");
  EXPECT_TRUE(
      contains(error_of([&] { ModelFileReader reader(path("empty.h5")); }), "not an HDF5 file"));
  EXPECT_TRUE(contains(error_of([&] { write_model(path("no/folder/model.h5")); }),
                       "No such file or directory"));
  EXPECT_TRUE(contains(error_of([&] { write_model(folder_.string()); }), "not a regular file"));
  EXPECT_TRUE(contains(error_of([&] { write_model("/dev/full"); }), "not a regular file"));
}

TEST_F(ModelFile, RefusesEveryTruncation) {
  write_model(path("model.h5"));
  const std::string whole = read_bytes(path("model.h5"));
  for (std::size_t size = 0; size < whole.size(); size += 1 + size / 16) {
    write_bytes(path("short.h5"), whole.substr(0, size));
    const std::string message = error_of([&] { read_everything(path("short.h5")); });
    EXPECT_TRUE(contains(message, "short.h5")) << size << ": " << message;
  }
}

TEST_F(ModelFile, NoticesEveryFlippedBitOfTheData) {
  write_model(path("model.h5"));
  const std::string whole = read_bytes(path("model.h5"));
  const auto slab = slab_bytes(2, 1, 4 * 7 * 2);
  const std::size_t place =
      whole.find(std::string(reinterpret_cast<const char*>(slab.data()), slab.size()));
  ASSERT_NE(place, std::string::npos);
  for (std::size_t bit = 0; bit < slab.size() * 8; bit += 5) {
    std::string damaged = whole;
    damaged[place + bit / 8] = static_cast<char>(damaged[place + bit / 8] ^ (1 << (bit % 8)));
    write_bytes(path("damaged.h5"), damaged);
    const std::string message = error_of([&] { read_everything(path("damaged.h5")); });
    EXPECT_TRUE(contains(message, "experts/up_proj/weight, slab 1")) << message;
    EXPECT_TRUE(contains(message, "checksum")) << message;
  }
}

/// A flipped bit anywhere is refused, or (in bytes that nothing uses) changes nothing.
TEST_F(ModelFile, SurvivesFlippedBitsAnywhere) {
  write_model(path("model.h5"));
  const std::string whole = read_bytes(path("model.h5"));
  const std::uint64_t identity = ModelFileReader(path("model.h5")).identity();
  int refused = 0;
  for (std::size_t byte = 0; byte < whole.size(); ++byte) {
    std::string damaged = whole;
    damaged[byte] = static_cast<char>(damaged[byte] ^ (1 << (byte % 8)));
    write_bytes(path("damaged.h5"), damaged);
    try {
      read_everything(path("damaged.h5"));
      EXPECT_EQ(ModelFileReader(path("damaged.h5")).identity(), identity) << "byte " << byte;
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

/// Opens the model file for writing with HDF5 itself and lets `change` spoil it.
void spoil(const std::string& file, const std::function<void(hid_t)>& change) {
  const hid_t id = H5Fopen(file.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  ASSERT_GE(id, 0);
  change(id);
  ASSERT_GE(H5Fclose(id), 0);
}

void add_dataset(hid_t file, hid_t type, std::vector<hsize_t> shape, hid_t creation) {
  const hid_t space = H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
  const hid_t dataset = H5Dcreate2(file, "/added", type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
  ASSERT_GE(dataset, 0);
  H5Dclose(dataset);
  H5Sclose(space);
}

TEST_F(ModelFile, RefusesOtherFormatsAndVersions) {
  const std::string file = path("model.h5");
  write_model(file);
  spoil(file, [](hid_t id) {
    const std::uint64_t version = 5;
    const hid_t attribute = H5Aopen(id, "format_version", H5P_DEFAULT);
    H5Awrite(attribute, H5T_NATIVE_UINT64, &version);
    H5Aclose(attribute);
  });
  EXPECT_TRUE(contains(error_of([&] { ModelFileReader reader(file); }), "format version 5"));
  write_model(file);
  spoil(file, [](hid_t id) {
    const hid_t attribute = H5Aopen(id, "format", H5P_DEFAULT);
    const hid_t type = H5Aget_type(attribute);
    H5Awrite(attribute, type, "other-model");
    H5Tclose(type);
    H5Aclose(attribute);
  });
  EXPECT_TRUE(contains(error_of([&] { ModelFileReader reader(file); }), "other-model"));
  write_model(file);
  spoil(file, [](hid_t id) { H5Adelete(id, "format"); });
  EXPECT_TRUE(contains(error_of([&] { ModelFileReader reader(file); }), "not a model file"));
}

TEST_F(ModelFile, RefusesForeignDatasets) {
  const std::string file = path("model.h5");
  const auto refusal = [&](const std::function<void(hid_t)>& change) {
    write_model(file);
    spoil(file, change);
    return error_of([&] { ModelFileReader reader(file); });
  };
  EXPECT_TRUE(contains(refusal([](hid_t id) {
                         add_dataset(id, H5T_STD_I32LE, {2, 2}, H5P_DEFAULT);
                       }),
                       "/added: elements are neither"));
  EXPECT_TRUE(contains(refusal([](hid_t id) {
                         add_dataset(id, H5T_IEEE_F32LE, {1, 2, 3, 4}, H5P_DEFAULT);
                       }),
                       "4 dimensions"));
  // Never allocated: claims more bytes than there are.
  EXPECT_TRUE(contains(refusal([](hid_t id) {
                         add_dataset(id, H5T_IEEE_F32LE, {1ULL << 40, 1ULL << 20}, H5P_DEFAULT);
                       }),
                       "does not fit a file of"));
  EXPECT_TRUE(contains(refusal([](hid_t id) {
                         add_dataset(id, H5T_IEEE_F32LE, {4, 4}, H5P_DEFAULT);
                       }),
                       "truncated or damaged"));
  EXPECT_TRUE(contains(refusal([](hid_t id) {
                         const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
                         const hsize_t chunk[2] = {2, 2};
                         H5Pset_chunk(creation, 2, chunk);
                         add_dataset(id, H5T_IEEE_F32LE, {4, 4}, creation);
                         H5Pclose(creation);
                       }),
                       "not stored contiguously"));
  EXPECT_TRUE(contains(refusal([](hid_t id) {
                         H5Lcreate_external("/etc/passwd", "/x", id, "/link", H5P_DEFAULT,
                                            H5P_DEFAULT);
                       }),
                       "external links"));
  EXPECT_TRUE(contains(refusal([](hid_t id) {
                         const hid_t dataset = H5Dopen2(id, "/a/weight", H5P_DEFAULT);
                         H5Adelete(dataset, "xxh3_64");
                         H5Dclose(dataset);
                       }),
                       "xxh3_64"));
}

TEST_F(ModelFile, RefusesWrongUse) {
  const std::string file = path("model.h5");
  write_model(file);
  ModelFileReader reader(file);
  EXPECT_TRUE(contains(error_of([&] { reader.dataset("/none"); }), "no dataset /none"));
  const DatasetInfo info = reader.dataset("/model/layers/0/mlp/experts/up_proj/weight");
  std::vector<std::byte> bytes(static_cast<std::size_t>(info.slab_bytes()));
  EXPECT_THROW(reader.read_slab(info, 3, bytes), Error);
  EXPECT_THROW(reader.read_slab(info, -1, bytes), Error);
  EXPECT_THROW(reader.read_slab(info, 0, std::span(bytes).first(3)), Error);

  ModelFileWriter writer(path("other.h5"), "{}", DType::bfloat16, datasets(), single_process);
  EXPECT_THROW(writer.write_slab(9, 0, bytes), Error);
  EXPECT_THROW(writer.write_slab(2, 3, bytes), Error);
  EXPECT_THROW(writer.write_slab(2, 0, std::span(bytes).first(3)), Error);
}

TEST_F(ModelFile, AnUnfinishedFileIsRemoved) {
  write_model(path("model.h5"));
  const std::string before = read_bytes(path("model.h5"));
  { ModelFileWriter writer(path("model.h5"), "{}", DType::float32, datasets(), single_process); }
  EXPECT_TRUE(only_file("model.h5"));
  {
    ModelFileWriter writer(path("model.h5"), "{}", DType::float32, datasets(), single_process);
    EXPECT_TRUE(contains(error_of([&] { writer.close(); }), "written 0 times"));
  }
  {
    ModelFileWriter writer(path("model.h5"), "{}", DType::float32, datasets(), single_process);
    writer.set_failed("something else went wrong");
    EXPECT_EQ(error_of([&] { writer.close(); }), "something else went wrong");
  }
  EXPECT_TRUE(only_file("model.h5"));
  EXPECT_EQ(read_bytes(path("model.h5")), before) << "the old file must stay";
}

/// Takes a file system off again, whatever a test throws.
struct Unmount {
  std::string path;
  ~Unmount() { umount(path.c_str()); }
};

TEST_F(ModelFile, AFullDiskIsNamed) {
  const std::string disk = path("disk");
  fs::create_directory(disk);
  if (mount("none", disk.c_str(), "tmpfs", 0, "size=1m") != 0) {
    GTEST_SKIP() << "cannot mount a small file system (" << std::strerror(errno)
                 << "); run as root to test a full disk";
  }
  const Unmount unmount{disk};
  const std::string file = disk + "/model.h5";
  const std::string message = error_of([&] {
    ModelFileWriter writer(file, "{}", DType::float32, {{"/x/weight", {1024, 1024}, false}},
                           single_process);
  });
  EXPECT_TRUE(contains(message, file + ": No space left on device")) << message;
  // Room that disappears after the start, and a write that fails then.
  write_bytes(disk + "/filler", std::string(900 << 10, 'x'));
  EXPECT_TRUE(contains(error_of([&] {
                         ModelFileWriter writer(file, "{}", DType::float32,
                                                {{"/x/weight", {256, 256}, false}}, single_process);
                       }),
                       "No space left on device"));
  EXPECT_EQ(std::distance(fs::directory_iterator(disk), fs::directory_iterator()), 1);
  fs::remove(disk + "/filler");
  write_model(disk + "/small.h5");
  read_everything(disk + "/small.h5");
}

TEST(Convert, RoundsToNearestEven) {
  EXPECT_EQ(bfloat16_of(1.0F), 0x3f80);
  EXPECT_EQ(bfloat16_of(1.00390625F), 0x3f80);   // tie, down to even
  EXPECT_EQ(bfloat16_of(1.01171875F), 0x3f82);   // tie, up to even
  EXPECT_EQ(bfloat16_of(-1.00390637F), 0xbf81);  // just above the tie
  EXPECT_EQ(float16_of(1.0F), 0x3c00);
  EXPECT_EQ(float16_of(1.00048828125F), 0x3c00);  // tie, down to even
  EXPECT_EQ(float16_of(1.00146484375F), 0x3c02);  // tie, up to even
  EXPECT_EQ(float16_of(65504.0F), 0x7bff);
  EXPECT_EQ(float16_of(65519.996F), 0x7bff);
  EXPECT_EQ(float16_of(65520.0F), 0x7c00);
  EXPECT_EQ(float16_of(0x1p-24F), 0x0001);
  EXPECT_EQ(float16_of(0x1p-25F), 0x0000);     // tie, down to even
  EXPECT_EQ(float16_of(-0x1.8p-24F), 0x8002);  // tie, up to even
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = float_of_float16(half);
    if (value == value) {
      EXPECT_EQ(float16_of(value), half);
    }
    const float brain = float_of_bfloat16(half);
    if (brain == brain) {
      EXPECT_EQ(bfloat16_of(brain), half);
    }
  }
}

TEST(Convert, AgreesWithTheCompilersHalf) {
  std::mt19937 random(7);
  for (int i = 0; i < 1000000; ++i) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (value != value) continue;
    const auto half = static_cast<_Float16>(value);
    EXPECT_EQ(float16_of(value), std::bit_cast<std::uint16_t>(half)) << value;
  }
}

TEST(Convert, RefusesWhatBecomesInfinite) {
  const std::vector<float> values = {1.0F, 70000.0F};
  std::vector<std::byte> bytes(4);
  EXPECT_TRUE(contains(error_of([&] {
                         convert(std::as_bytes(std::span(values)), DType::float32, bytes,
                                 DType::float16);
                       }),
                       "element 1 is 70000"));
  EXPECT_THROW(convert(std::as_bytes(std::span(values)), DType::float32, std::span(bytes).first(2),
                       DType::float16),
               Error);
}

}  // namespace
}  // namespace atl::io
