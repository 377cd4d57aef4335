// Bytes a second that N threads together read from memory: the floor of decoding.
//
//   read_bandwidth [threads] [MiB a thread]
//
// Every thread sums a buffer of its own, far larger than the caches, five times; once with the
// pages the system gives and once with 2 MiB pages asked for. Prints one line of JSON with the
// bytes a second of every pass, which lasts from the first thread's start to the last one's end.

#include <omp.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr int passes = 5;

using Words [[gnu::vector_size(64)]] = std::uint64_t;
constexpr std::size_t words_in_one = sizeof(Words) / sizeof(std::uint64_t);

/// Sum of `count` words. Four streams at once: prefetchers follow each, and one alone left a fifth
/// of the bandwidth unused.
std::uint64_t sum_of(const std::uint64_t* words, std::size_t count) {
  constexpr std::size_t streams = 4;
  const std::size_t part = count / streams / words_in_one;
  const auto* vectors = reinterpret_cast<const Words*>(words);
  Words sums[streams] = {};
  for (std::size_t i = 0; i < part; ++i) {
    for (std::size_t j = 0; j < streams; ++j) sums[j] += vectors[j * part + i];
  }
  const Words all = sums[0] + sums[1] + sums[2] + sums[3];
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < words_in_one; ++i) sum += all[i];
  return sum;
}

/// Bytes a second of each pass.
std::vector<double> measure(int threads, std::size_t bytes, int advice) {
  std::vector<double> begins(static_cast<std::size_t>(threads)), rates;
  std::vector<double> ends(begins);
  std::uint64_t wrong = 0;
#pragma omp parallel num_threads(threads) reduction(+ : wrong)
  {
    const auto mine = static_cast<std::size_t>(omp_get_thread_num());
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      std::perror("read_bandwidth: mmap");
      std::exit(1);
    }
    madvise(memory, bytes, advice);
    auto* words = static_cast<std::uint64_t*>(memory);
    const std::size_t count = bytes / sizeof(*words);
    for (std::size_t i = 0; i < count; ++i) words[i] = i;
    const std::uint64_t expected = std::uint64_t{count} * (count - 1) / 2;
    for (int pass = 0; pass < passes; ++pass) {
#pragma omp barrier
      begins[mine] = omp_get_wtime();
      const std::uint64_t sum = sum_of(words, count);
      ends[mine] = omp_get_wtime();
      if (sum != expected) ++wrong;
#pragma omp barrier
#pragma omp master
      {
        double begin = begins[0], end = ends[0];
        for (const double one : begins) begin = one < begin ? one : begin;
        for (const double one : ends) end = one > end ? one : end;
        rates.push_back(static_cast<double>(bytes) * threads / (end - begin));
      }
    }
    munmap(memory, bytes);
  }
  if (wrong != 0) {
    std::fprintf(stderr, "read_bandwidth: a sum is wrong\n");
    std::exit(1);
  }
  return rates;
}

void print(const char* name, const std::vector<double>& rates) {
  std::printf("\"%s\": [", name);
  for (std::size_t i = 0; i < rates.size(); ++i) std::printf(i > 0 ? ", %.4g" : "%.4g", rates[i]);
  std::printf("]");
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const std::size_t bytes = (argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 512) << 20;
  if (threads < 1 || bytes == 0) {
    std::fprintf(stderr, "usage: read_bandwidth [threads] [MiB a thread]\n");
    return 2;
  }
  std::printf("{");
  print("small_pages", measure(threads, bytes, MADV_NOHUGEPAGE));
  std::printf(", ");
  print("huge_pages", measure(threads, bytes, MADV_HUGEPAGE));
  std::printf("}\n");
}
