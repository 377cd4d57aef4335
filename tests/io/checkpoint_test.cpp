// timeout: 180
//
// Checkpoints: what is written is read back; every flipped bit and every cut is noticed or
// harmless.

#include "io/checkpoint.hpp"

#include <gtest/gtest.h>
#include <hdf5.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>
#include <set>

#include "compute/error.hpp"
#include "io/hdf5_handle.hpp"
#include "io/model_file.hpp"
#include "tests/fixtures.hpp"

namespace atl::io {
namespace {

namespace fs = std::filesystem;

/// A folder of this test's own, removed at the end.
using Checkpoint = FolderTest;

std::vector<std::byte> noise(std::size_t bytes, unsigned seed) {
  std::vector<std::byte> values(bytes);
  for (std::byte& value : values)
    value = static_cast<std::byte>((seed = seed * 1664525 + 1013904223) >> 24);
  return values;
}

/// Three sequences; the first has two pieces, the third was finished before it was written.
struct Example {
  CheckpointContents contents;
  std::vector<std::int32_t> tokens = {7, 8, 9, 10, 11};
  std::vector<float> logprobs = {-1.5F, -0.25F, -3, -4, -5};
  std::vector<SampledToken> tops = {{1, -1}, {2, -2}, {3, -3}, {-1, -4}};

  Example() {
    contents.state = R"({"run":{"model":"0"},"step":12})";
    contents.num_layers = 2;
    contents.num_kv_heads = 2;
    contents.head_dim = 4;
    contents.num_experts = 3;
    // The first two go on from one beginning.
    contents.sequences = {{-1, 0, 0, 4, 0},
                          {4, 2, 2, piece_positions + 6, 0, 4, 1, 0, 4},
                          {0, 0, 0, 5, 0, 0, 0, 0, 4},
                          {9, 3, 3, 8, 0}};
    contents.sequences_of = {4};
    contents.pending = {10, 11};
    contents.expert_loads = {1, 2, 3, 4, 5, 6};
  }
  std::vector<std::byte> piece(std::size_t sequence, int layer, std::int64_t index,
                               int which) const {
    const auto count = piece_of(contents.sequences[sequence], index).count;
    return noise(
        static_cast<std::size_t>(count * contents.row_bytes()),
        static_cast<unsigned>(sequence * 1000 + static_cast<std::size_t>(layer * 100 + which) +
                              static_cast<std::size_t>(index) * 10));
  }
  void write(const std::string& to) const {
    CheckpointWriter writer(to, contents, tokens, logprobs, tops, single_process);
    for (std::size_t s = 0; s < 3; ++s) {
      for (std::int64_t p = 0; p < contents.sequences[s].num_pieces(); ++p) {
        for (int layer = 0; layer < 2; ++layer) {
          writer.write_piece(static_cast<std::int64_t>(s), layer, p, piece(s, layer, p, 1),
                             piece(s, layer, p, 2));
        }
      }
      writer.set_complete(static_cast<std::int64_t>(s));
    }
    writer.start_sync();
    while (!writer.synced()) usleep(100);
    writer.finish();
  }
  /// Reads everything; throws Error where the file says that it is damaged, and returns whether
  /// what it gave is what was written.
  bool reads_back(const std::string& from) const {
    CheckpointReader reader(from);
    reader.verify(0, 1);
    const CheckpointContents& c = reader.contents();
    bool same = c.state == contents.state && c.num_layers == 2 && c.num_kv_heads == 2 &&
                c.head_dim == 4 && c.num_experts == 3 && c.dtype == contents.dtype &&
                c.sequences_of == contents.sequences_of && c.pending == contents.pending &&
                c.expert_loads == contents.expert_loads && c.sequences.size() == 4;
    std::vector<std::int32_t> all_tokens;
    std::vector<float> all_logprobs;
    std::vector<SampledToken> all_tops;
    for (std::size_t s = 0; same && s < 4; ++s) {
      const CheckpointSequence& got = c.sequences[s];
      const CheckpointSequence& want = contents.sequences[s];
      same = got.request == want.request && got.generated == want.generated &&
             got.logprobs == want.logprobs && got.cached == want.cached &&
             got.complete == (s < 3 ? 1 : 0) && got.tops == want.tops &&
             got.greedy == want.greedy && got.beginning == want.beginning &&
             got.first == want.first;
      const auto more = reader.tops_of(s);
      all_tops.insert(all_tops.end(), more.begin(), more.end());
      const auto t = reader.tokens_of(s);
      const auto l = reader.logprobs_of(s);
      all_tokens.insert(all_tokens.end(), t.begin(), t.end());
      all_logprobs.insert(all_logprobs.end(), l.begin(), l.end());
      if (!same || got.complete == 0) continue;
      for (std::int64_t p = 0; p < got.num_pieces(); ++p) {
        for (int layer = 0; layer < 2; ++layer) {
          auto keys = piece(s, layer, p, 1);
          auto values = piece(s, layer, p, 2);
          const auto expected_keys = keys;
          const auto expected_values = values;
          reader.read_piece(s, layer, p, keys, values);
          same = same && keys == expected_keys && values == expected_values;
        }
      }
    }
    same = same && reader.chain_of(2) == std::vector<std::size_t>{0, 2} && reader.is_complete(2) &&
           !reader.is_complete(3);
    const auto alike = [](const SampledToken& a, const SampledToken& b) {
      return a.token == b.token && a.logprob == b.logprob;
    };
    return same && all_tokens == tokens && all_logprobs == logprobs &&
           std::ranges::equal(all_tops, tops, alike);
  }
};

std::vector<char> bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_bytes(const std::string& path, const std::vector<char>& bytes, std::size_t count) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(count));
}

TEST_F(Checkpoint, IsReadBackAsItWasWritten) {
  const Example example;
  example.write(path("a.h5"));
  EXPECT_TRUE(example.reads_back(path("a.h5")));
  EXPECT_EQ(file_format(path("a.h5")), checkpoint_format);
  EXPECT_EQ(std::distance(fs::directory_iterator(fs::path(path("a.h5")).parent_path()), {}), 1)
      << "a temporary file is left";
}

TEST_F(Checkpoint, MayHoldNoSequence) {
  CheckpointContents contents = Example().contents;
  contents.sequences.clear();
  contents.pending.clear();
  contents.sequences_of = {0};
  CheckpointWriter writer(path("none.h5"), contents, {}, {}, {}, single_process);
  writer.start_sync();
  writer.finish();
  const CheckpointReader reader(path("none.h5"));
  EXPECT_TRUE(reader.contents().sequences.empty());
  EXPECT_EQ(reader.contents().num_kv_heads, 2);
}

TEST_F(Checkpoint, AnUnfinishedOneLeavesNothing) {
  const Example example;
  const std::string folder = fs::path(path("x")).parent_path();
  {
    const CheckpointWriter writer(path("a.h5"), example.contents, example.tokens, example.logprobs,
                                  example.tops, single_process);
    EXPECT_FALSE(fs::is_empty(folder));
  }
  EXPECT_TRUE(fs::is_empty(folder));
  CheckpointWriter writer(path("a.h5"), example.contents, example.tokens, example.logprobs,
                          example.tops, single_process);
  writer.abandon();
  EXPECT_TRUE(fs::is_empty(folder));
  EXPECT_THROW(CheckpointReader(path("a.h5")), Error);
  EXPECT_THROW(CheckpointWriter(path("nowhere/a.h5"), example.contents, example.tokens,
                                example.logprobs, example.tops, single_process),
               Error);
}

/// What reading a file says where it is refused; empty where it is not.
std::string refusal_of(const std::string& path) {
  try {
    const CheckpointReader reader(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST_F(Checkpoint, OfAnotherVersionIsRefusedByName) {
  const Example example;
  example.write(path("old.h5"));
  {
    const Handle file(H5Fopen(path("old.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT));
    const Handle attribute(H5Aopen(file.get(), "format_version", H5P_DEFAULT));
    const std::uint64_t version = 1;
    ASSERT_GE(H5Awrite(attribute.get(), H5T_NATIVE_UINT64, &version), 0);
  }
  const std::string refusal = refusal_of(path("old.h5"));
  EXPECT_NE(refusal.find("old.h5"), std::string::npos) << refusal;
  EXPECT_NE(refusal.find("format version 1, this build reads 2"), std::string::npos) << refusal;
}

/// Its checksums hold: they are of what was listed.
TEST_F(Checkpoint, WithAListThatContradictsItselfIsRefused) {
  const auto refusal_with = [this](std::size_t sequence, std::int64_t beginning,
                                   std::int64_t first) {
    Example example;
    example.contents.sequences[sequence].beginning = beginning;
    example.contents.sequences[sequence].first = first;
    example.write(path("list.h5"));
    return refusal_of(path("list.h5"));
  };
  EXPECT_EQ(refusal_with(2, 0, 4), "");
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  struct Case {
    std::size_t sequence;
    std::int64_t beginning, first;
  };
  for (const Case c : {Case{2, 0, 3}, Case{2, 1, piece_positions + 10}, Case{2, 2, 4},
                       Case{2, 3, 8}, Case{2, 4, 4}, Case{2, huge, 4}, Case{2, -2, 0},
                       Case{2, -1, 4}, Case{0, 0, 4}, Case{0, -1, -4}, Case{0, -1, huge}}) {
    const std::string refusal = refusal_with(c.sequence, c.beginning, c.first);
    EXPECT_NE(refusal.find("goes on from what is no beginning"), std::string::npos)
        << c.sequence << " from " << c.beginning << " at " << c.first << ": " << refusal;
  }
}

TEST_F(Checkpoint, EveryFlippedBitIsNoticedOrHarmless) {
  const Example example;
  example.write(path("good.h5"));
  const std::vector<char> good = bytes_of(path("good.h5"));
  const char* every = std::getenv("ATOLL_FLIP_EVERY");
  const std::size_t stride = every != nullptr ? std::strtoul(every, nullptr, 10) : 211;
  int noticed = 0;
  int harmless = 0;
  for (std::size_t bit = 0; bit < good.size() * 8; bit += stride) {
    std::vector<char> bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    write_bytes(path("bad.h5"), bad, bad.size());
    try {
      EXPECT_TRUE(example.reads_back(path("bad.h5"))) << "bit " << bit << " changed what is read";
      ++harmless;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("bad.h5"), std::string::npos) << error.what();
      ++noticed;
    }
  }
  RecordProperty("noticed", noticed);
  // What is not read: padding, the keys that were not written, versions of free space.
  EXPECT_GT(noticed, harmless);
}

TEST_F(Checkpoint, EveryCutIsNoticed) {
  const Example example;
  example.write(path("good.h5"));
  const std::vector<char> good = bytes_of(path("good.h5"));
  std::set<std::size_t> cuts = {0, 1, 7, 8, 9, 47, 48, 49, good.size() - 1};
  const hid_t file = H5Fopen(path("good.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  ASSERT_GE(file, 0);
  for (const char* name : {"state", "parts", "sequences", "tokens", "logprobs", "tops", "keys",
                           "values", "kv_checksums", "pending", "expert_loads"}) {
    const hid_t data = H5Dopen2(file, name, H5P_DEFAULT);
    const auto begin = static_cast<std::size_t>(H5Dget_offset(data));
    const auto end = begin + static_cast<std::size_t>(H5Dget_storage_size(data));
    for (const std::size_t at : {begin, end}) {
      for (const std::size_t cut : {at - 1, at, at + 1}) {
        if (cut < good.size()) cuts.insert(cut);
      }
    }
    H5Dclose(data);
  }
  H5Fclose(file);
  for (std::size_t cut = 0; cut < good.size(); cut += 997) cuts.insert(cut);
  for (const std::size_t cut : cuts) {
    write_bytes(path("cut.h5"), good, cut);
    EXPECT_THROW(example.reads_back(path("cut.h5")), Error) << cut << " of " << good.size();
  }
}

}  // namespace
}  // namespace atl::io
