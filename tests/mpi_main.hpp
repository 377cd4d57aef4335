#pragma once
// main() of a multi-rank GoogleTest program; include it in exactly one source of the test.
//
// Every rank runs the same tests in the same order, and all ranks meet after each one. Rank 0
// prints as GoogleTest always does; of the other ranks only the lowest that failed prints its
// failures. The program fails on all ranks when a test failed on any. A rank that failed and waits
// in vain for the others (they hang in a call that it left early) prints its failures and aborts
// the job.

#include <gtest/gtest.h>
#include <mpi.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <sstream>
#include <string>
#include <thread>

namespace mpi_test {

/// How long a rank that has failed waits for the others at the end of a test.
inline constexpr std::chrono::seconds failed_rank_patience{20};

/// Collects the failures of this rank and agrees on the outcome of each test with the others.
class MpiListener : public testing::EmptyTestEventListener {
 public:
  explicit MpiListener(MPI_Comm comm) : comm_(comm) {
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &num_ranks_);
  }

  /// True when some test failed on some rank; equal on all ranks.
  bool any_failed() const { return any_failed_; }

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    failures_ << '\n'
              << (result.file_name() != nullptr ? result.file_name() : "?") << ':'
              << result.line_number() << ": failure on rank " << rank_ << " of " << num_ranks_
              << '\n'
              << result.message() << '\n';
  }

  void OnTestEnd(const testing::TestInfo& info) override {
    const bool failed = info.result()->Failed();
    const int lowest_failed = agree(failed ? rank_ : num_ranks_, info);
    if (lowest_failed < num_ranks_) any_failed_ = true;
    if (lowest_failed == rank_ && rank_ != 0) print_failures(info);  // rank 0 has printed already
    failures_.str("");
  }

 private:
  /// The smallest of all ranks' values. Aborts the job when this rank failed and others never come.
  int agree(int value, const testing::TestInfo& info) {
    int lowest = value;
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Iallreduce(&value, &lowest, 1, MPI_INT, MPI_MIN, comm_, &request);
    const auto give_up = std::chrono::steady_clock::now() + failed_rank_patience;
    for (int arrived = 0;;) {
      MPI_Test(&request, &arrived, MPI_STATUS_IGNORE);
      if (arrived != 0) return lowest;
      if (value == rank_ && std::chrono::steady_clock::now() > give_up) {
        print_failures(info);
        std::fprintf(stderr, "rank %d failed and the others did not finish the test: aborting\n",
                     rank_);
        MPI_Abort(comm_, 1);
      }
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }

  void print_failures(const testing::TestInfo& info) {
    std::fprintf(stderr, "[  FAILED  ] %s.%s%s", info.test_suite_name(), info.name(),
                 failures_.str().c_str());
    std::fflush(stderr);
  }

  MPI_Comm comm_;
  int rank_ = 0;
  int num_ranks_ = 1;
  bool any_failed_ = false;
  std::ostringstream failures_;
};

/// Runs all tests on all ranks of MPI_COMM_WORLD; returns the exit code, equal on all ranks.
inline int run_on_all_ranks() {
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  int rank = 0;
  MPI_Comm_rank(comm, &rank);
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (rank != 0) delete listeners.Release(listeners.default_result_printer());
  auto* listener = new MpiListener(comm);  // GoogleTest owns and deletes it
  listeners.Append(listener);
  int failed = RUN_ALL_TESTS() != 0 || listener->any_failed() ? 1 : 0;
  int any_failed =
      0;  // a failure outside a test (an environment's set-up) is known to one rank only
  MPI_Allreduce(&failed, &any_failed, 1, MPI_INT, MPI_MAX, comm);
  MPI_Comm_free(&comm);
  return any_failed;
}

}  // namespace mpi_test

int main(int argc, char** argv) {
  int provided = MPI_THREAD_SINGLE;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  if (provided < MPI_THREAD_FUNNELED) {
    std::fprintf(stderr, "this MPI offers no MPI_THREAD_FUNNELED\n");
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  int exit_code = 1;
  try {
    testing::InitGoogleTest(&argc, argv);
    exit_code = mpi_test::run_on_all_ranks();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "unexpected exception outside a test: %s\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return exit_code;
}
