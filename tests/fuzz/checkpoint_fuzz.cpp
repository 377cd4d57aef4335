// A checkpoint whose contents were altered behind its checksums: refused with a message, or what it
// says of itself holds and every piece can be read.
//
// HDF5 itself does not withstand arbitrary bytes in its metadata (version 1.10 crashes on some), so
// the container stays sound: the input says which elements of which dataset or attribute change.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "io/checkpoint.hpp"
#include "io/hdf5_handle.hpp"
#include "io/model_file.hpp"
#include "tests/fuzz/fuzz_input.hpp"
#include "tests/temporary_folder.hpp"

namespace {

using namespace atl;

io::CheckpointContents contents() {
  io::CheckpointContents c;
  c.state = R"({"run": {}, "step": 3})";
  c.num_layers = 2;
  c.num_kv_heads = 1;
  c.head_dim = 4;
  c.num_experts = 2;
  c.sequences = {{-1, 0, 0, 4, 0}, {0, 3, 3, 8, 0, 3, 1, 0, 4}, {2, 0, 0, 5, 0, 0, 0, 0, 4}};
  c.sequences_of = {3};
  c.pending = {1, 3};
  c.expert_loads = {1, 2, 3, 4};
  return c;
}

std::string make_checkpoint(const std::string& path) {
  const io::CheckpointContents c = contents();
  const std::vector<std::int32_t> tokens{1, 2, 3};
  const std::vector<float> logprobs{-1, -2, -3};
  const std::vector<SampledToken> tops{{1, -1}, {2, -2}, {3, -3}};
  io::CheckpointWriter writer(path, c, tokens, logprobs, tops, io::single_process);
  for (std::int64_t s = 0; s < 3; ++s) {
    const auto cached = c.sequences[static_cast<std::size_t>(s)].cached;
    const std::vector<std::byte> kv(static_cast<std::size_t>(cached * c.row_bytes()), std::byte{1});
    for (int layer = 0; layer < c.num_layers; ++layer) writer.write_piece(s, layer, 0, kv, kv);
    writer.set_complete(s);
  }
  writer.start_sync();
  while (!writer.synced()) usleep(100);
  writer.finish();
  return path;
}

struct Names {
  std::vector<std::string> datasets;
  std::vector<std::pair<std::string, std::string>> attributes;  // of which object
};

/// Every dataset and attribute of the file.
Names names_in(const std::string& path) {
  Names names;
  const io::Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
  const auto visit = [](hid_t object, const char* name, const H5O_info_t* info,
                        void* data) -> herr_t {
    auto& all = *static_cast<Names*>(data);
    if (info->type == H5O_TYPE_DATASET) all.datasets.emplace_back(name);
    const io::Handle opened(H5Oopen(object, name, H5P_DEFAULT));
    std::pair<Names*, std::string> context{&all, name};
    H5Aiterate2(
        opened.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr,
        [](hid_t, const char* attribute, const H5A_info_t*, void* of) -> herr_t {
          auto& [found, object_name] = *static_cast<std::pair<Names*, std::string>*>(of);
          found->attributes.emplace_back(object_name, attribute);
          return 0;
        },
        &context);
    return 0;
  };
  H5Ovisit2(file.get(), H5_INDEX_NAME, H5_ITER_INC, visit, &names, H5O_INFO_BASIC);
  return names;
}

void overwrite(std::vector<char>& bytes, std::size_t at, std::span<const std::uint8_t> with) {
  for (std::size_t i = 0; i < with.size() && !bytes.empty(); ++i) {
    bytes[(at + i) % bytes.size()] = static_cast<char>(with[i]);
  }
}

/// One change: which object, where in it, and the bytes to put there.
void change(hid_t file, const Names& names, std::span<const std::uint8_t> order) {
  const std::size_t which = order[0] % (names.datasets.size() + names.attributes.size());
  const std::size_t at = order[1];
  std::vector<char> bytes;
  if (which < names.datasets.size()) {
    const io::Handle data(H5Dopen2(file, names.datasets[which].c_str(), H5P_DEFAULT));
    const io::Handle type(H5Dget_type(data.get()));
    bytes.resize(H5Dget_storage_size(data.get()));
    if (H5Dread(data.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()) < 0) return;
    overwrite(bytes, at, order.subspan(2));
    H5Dwrite(data.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data());
    // Mostly with the checksum that belongs to the new bytes: else nothing gets past it.
    if (order[0] < 0xe0 && H5Aexists(data.get(), io::checksum_attribute) > 0) {
      const std::uint64_t sum = io::checksum_of(std::as_bytes(std::span(bytes)));
      if (io::read_u64_attribute(data.get(), io::checksum_attribute, "checksum").size() == 1) {
        io::set_u64_attribute(data.get(), io::checksum_attribute, &sum);
      }
    }
    return;
  }
  const auto& [object, name] = names.attributes[which - names.datasets.size()];
  const io::Handle attribute(
      H5Aopen_by_name(file, object.c_str(), name.c_str(), H5P_DEFAULT, H5P_DEFAULT));
  const io::Handle type(H5Aget_type(attribute.get()));
  bytes.resize(H5Aget_storage_size(attribute.get()));
  if (H5Aread(attribute.get(), type.get(), bytes.data()) < 0) return;
  overwrite(bytes, at, order.subspan(2));
  H5Awrite(attribute.get(), type.get(), bytes.data());
}

void read_all(const std::string& path) {
  io::CheckpointReader reader(path);
  const io::CheckpointContents& c = reader.contents();
  for (std::size_t s = 0; s < c.sequences.size(); ++s) {
    const auto generated = static_cast<std::size_t>(c.sequences[s].generated);
    fuzz::expect(reader.tokens_of(s).size() == generated);
    fuzz::expect(reader.tops_of(s).size() == static_cast<std::size_t>(c.sequences[s].tops));
    fuzz::expect(reader.chain_of(s).back() == s);
    fuzz::expect(reader.logprobs_of(s).size() == static_cast<std::size_t>(c.sequences[s].logprobs));
  }
  reader.verify(0, 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const TemporaryFolder folder("/dev/shm");  // in memory, while the process lives
  static const std::string sound = make_checkpoint((folder.path() / "sound.h5").string());
  static const Names names = names_in(sound);
  const std::string path = (folder.path() / "altered.h5").string();
  std::filesystem::copy_file(sound, path, std::filesystem::copy_options::overwrite_existing);
  {
    const io::Handle file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT));
    // Orders of 6 bytes: object, place, 4 bytes to put there.
    constexpr std::size_t order_bytes = 6;
    for (std::size_t at = 0; at + order_bytes <= size; at += order_bytes) {
      change(file.get(), names, {data + at, order_bytes});
    }
  }
  fuzz::accepted([&] { read_all(path); });
  return 0;
}
