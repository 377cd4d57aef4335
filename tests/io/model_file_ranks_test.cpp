// Writing one model file together.
// ranks: 1 2 3 5

#include <gtest/gtest.h>
#include <mpi.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "app/model/init.hpp"
#include "app/model/inspect.hpp"
#include "compute/error.hpp"
#include "io/model_file.hpp"
#include "tests/fixtures.hpp"
#include "tests/mpi_main.hpp"
#include "tests/shared_folder.hpp"

namespace atl {
namespace {

namespace fs = std::filesystem;

class ParallelModelFile : public testing::Test {
 protected:
  void SetUp() override {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &num_ranks_);
  }
  void TearDown() override { MPI_Barrier(MPI_COMM_WORLD); }

  std::string path(const char* name) const { return folder_ / name; }
  static int world() { return MPI_Comm_c2f(MPI_COMM_WORLD); }

  static std::string bytes_of(const std::string& file) {
    std::ifstream stream(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  /// Every rank must have thrown the same text, and no file may be left.
  void expect_agreed(const std::string& error, const std::string& part) const {
    EXPECT_NE(error.find(part), std::string::npos) << error;
    std::string first = error;
    first.resize(4096);
    MPI_Bcast(first.data(), 4096, MPI_CHAR, 0, MPI_COMM_WORLD);
    EXPECT_EQ(error, std::string(first.c_str()));
    EXPECT_TRUE(fs::is_empty(folder_.path()));
    MPI_Barrier(MPI_COMM_WORLD);
  }

  SharedFolder folder_{comm::Communicator::world()};
  int rank_ = 0;
  int num_ranks_ = 1;
};

TEST_F(ParallelModelFile, HasTheBytesOfOneWrittenAlone) {
  for (const char* name : {"moe-4l-tiny", "moe-16l-tiny", "moe-61l-tiny"}) {
    const ModelConfig config = preset(name);
    init_model(config, 9, path("together.h5"), rank_, num_ranks_, world());
    if (rank_ == 0) {
      init_model(config, 9, path("alone.h5"), 0, 1, io::single_process);
      EXPECT_TRUE(bytes_of(path("together.h5")) == bytes_of(path("alone.h5"))) << name;
      EXPECT_NO_THROW(inspect_text(path("together.h5"), true));
    }
    MPI_Barrier(MPI_COMM_WORLD);
  }
}

TEST_F(ParallelModelFile, ManyGroupsHaveTheSameBytesToo) {
  ModelConfig config = preset("moe-4l-tiny");
  config.shape.num_layers = 400;
  config.shape.layer_is_dense.assign(400, true);
  init_model(config, 9, path("together.h5"), rank_, num_ranks_, world());
  if (rank_ == 0) {
    init_model(config, 9, path("alone.h5"), 0, 1, io::single_process);
    EXPECT_TRUE(bytes_of(path("together.h5")) == bytes_of(path("alone.h5")));
  }
}

TEST_F(ParallelModelFile, AllRanksLearnOfOneFailure) {
  const auto write = [&](const std::function<void(io::ModelFileWriter&)>& spoil) {
    const std::int64_t rows = num_ranks_;
    io::ModelFileWriter writer(path("model.h5"), "{}", DType::float32, {{"/x", {rows, 1, 4}, true}},
                               world());
    const std::vector<std::byte> bytes(16, std::byte{1});
    if (rank_ != num_ranks_ - 1) writer.write_slab(0, rank_, bytes);
    if (rank_ == num_ranks_ - 1) spoil(writer);
    writer.close();
  };
  expect_agreed(error_of([&] {
                  write([](io::ModelFileWriter& w) { w.set_failed("the generator is broken"); });
                }),
                "the generator is broken");
  expect_agreed(error_of([&] { write([](io::ModelFileWriter&) {}); }), "written 0 times");
  expect_agreed(error_of([&] {
                  write([&](io::ModelFileWriter& w) {
                    w.write_slab(0, rank_, std::vector<std::byte>(16));
                    w.write_slab(0, rank_, std::vector<std::byte>(16));
                  });
                }),
                "written 2 times");
  expect_agreed(error_of([&] {
                  io::ModelFileWriter writer(path("none/model.h5"), "{}", DType::float32,
                                             {{"/x", {4}, false}}, world());
                }),
                "No such file or directory");
}

}  // namespace
}  // namespace atl
