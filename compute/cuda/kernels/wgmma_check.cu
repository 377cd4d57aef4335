// Asks a device whether wgmma.cuh is right about it: in which registers elements lie, how matrices
// in shared memory are described, what fences order. Products of small whole numbers, whose sums
// are exact, in the forms in which attention takes them; a wrong layout gives wrong numbers.

#include "compute/cuda/kernels/wgmma.cuh"
#include "compute/cuda/wgmma.hpp"

namespace atl::compute::cuda {

namespace {

constexpr int lines = 64;     // of A, and of B
constexpr int depth = 128;    // of A, along its lines
constexpr int columns = 256;  // of B's lines

template <class T>
struct alignas(tile_alignment) Coded {
  T left[lines * depth];
  T right[lines * columns];
  int wrong;
};

/// Element of A in line `line`, of B likewise: exact in either type.
__device__ float left_number(int line, int column) {
  return static_cast<float>((line * 37 + column * 11) % 127 - 63);
}
__device__ float right_number(int line, int column) {
  return static_cast<float>((line * 29 + column * 17) % 113 - 56);
}

/// Words of A for the k of product `k`.
template <class T>
__device__ void hold_left(std::uint32_t (&a)[4], int k) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const int column = k * product_depth + left_depth(thread, w);
    const float pair[2] = {left_number(left_row(thread, w), column),
                           left_number(left_row(thread, w), column + 1)};
    a[w] = pack_word<T>(pair);
  }
}

template <int n>
__device__ void finish(float (&d)[n]) {
  commit_products();
  wait_products<0>();
  settle(d);
}

/// How many elements of D are not the sums over `length` of A's and B's numbers.
template <int n>
__device__ int count_wrong(const float (&d)[n], Lines kind, int length) {
  const int thread = static_cast<int>(threadIdx.x);
  int wrong = 0;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    float sum = 0;
#pragma unroll 1
    for (int k = 0; k < length; ++k) {
      const int column = sum_column(thread, i);
      sum += left_number(sum_row(thread, i), k) *
             (kind == Lines::columns ? right_number(column, k) : right_number(k, column));
    }
    if (d[i] != sum) ++wrong;
  }
  return wrong;
}

/// A [64, 128] B [64, 128]': as scores are made, with A in registers or in shared memory.
template <class T, bool held>
__device__ int check_scores(const Coded<T>& shared) {
  float d[32];
  std::uint32_t a[depth / product_depth][4];
#pragma unroll
  for (int k = 0; k < depth / product_depth; ++k) hold_left<T>(a[k], k);
  begin_products();
  const std::uint64_t left = describe_tiles(shared.left, access_bytes);
  const std::uint64_t right = describe_tiles(shared.right, access_bytes);
#pragma unroll
  for (int k = 0; k < depth / product_depth; ++k) {
    const auto along = static_cast<unsigned>(k / 4 * lines * line_bytes + k % 4 * 32);
    if constexpr (held) {
      multiply<T, Lines::columns>(d, a[k], moved(right, along), k > 0);
    } else {
      multiply<T, Lines::columns>(d, moved(left, along), moved(right, along), k > 0);
    }
  }
  finish(d);
  return count_wrong(d, Lines::columns, depth);
}

/// A [64, 64] B [64, n]: as weights are multiplied with values.
template <class T, int n>
__device__ int check_values(const Coded<T>& shared) {
  float d[n / 2];
  std::uint32_t a[lines / product_depth][4];
#pragma unroll
  for (int k = 0; k < lines / product_depth; ++k) hold_left<T>(a[k], k);
  begin_products();
  const std::uint64_t right = describe_tiles(shared.right, lines * line_bytes);
#pragma unroll
  for (int k = 0; k < lines / product_depth; ++k) {
    multiply<T, Lines::depth>(d, a[k], moved(right, k * product_depth * line_bytes), k > 0);
  }
  finish(d);
  return count_wrong(d, Lines::depth, lines);
}

/// Whether products with weights of 0 leave sums of any size as they are, to the bit: rows that do
/// not see a block rely on it.
template <class T>
__device__ int check_unmoved(const Coded<T>& shared) {
  const auto number = [](int i) {
    const unsigned seed = (threadIdx.x * 64U + static_cast<unsigned>(i)) * 2654435761U;
    return __uint_as_float((seed & 0x807fffffU) | ((97U + seed / 524288U % 31U) << 23U));
  };
  float d[64];
  const std::uint32_t zeros[4] = {};
#pragma unroll
  for (int i = 0; i < 64; ++i) d[i] = number(i);
  begin_products();
  multiply<T, Lines::depth>(d, zeros, describe_tiles(shared.right, lines * line_bytes), true);
  finish(d);
  int wrong = 0;
#pragma unroll
  for (int i = 0; i < 64; ++i) wrong += d[i] == number(i) ? 0 : 1;
  return wrong;
}

template <class T>
__global__ void __launch_bounds__(group_threads, 1) ask_kernel(int* wrong) {
  if constexpr (has_wgmma()) {
    auto& shared = *tiles_in_shared<Coded<T>>();
    const int thread = static_cast<int>(threadIdx.x);
    const auto fill = [&](T* to, int width, auto&& number) {
      for (int i = thread; i < lines * width; i += group_threads) {
        T* element = to + tile_offset(i / width, i % width, lines);
        *element = round_to<T>(number(i / width, i % width));
        note_shared_write(element, sizeof(T));
      }
    };
    if (thread == 0) shared.wrong = 0;
    fill(shared.left, depth, left_number);
    fill(shared.right, columns, right_number);
    fence_for_products();
    __syncthreads();
    int count = check_scores<T, true>(shared) + check_scores<T, false>(shared);
    count +=
        check_values<T, 64>(shared) + check_values<T, 128>(shared) + check_values<T, 256>(shared);
    __syncthreads();
    fill(shared.right, columns, [](int line, int) { return line % 2 == 0 ? 32768.0F : -24576.0F; });
    fence_for_products();
    __syncthreads();
    count += check_unmoved<T>(shared);
    if (count > 0) atomicAdd(&shared.wrong, count);
    __syncthreads();
    if (thread == 0) *wrong += shared.wrong;
  } else if (threadIdx.x == 0) {
    *wrong = -1;
  }
}

}  // namespace

void ask_about_wgmma(cudaStream_t stream, int* wrong) {
  launch(stream, "wgmma check", &ask_kernel<__nv_bfloat16>, dim3(1), group_threads,
         sizeof(Coded<__nv_bfloat16>), wrong);
  launch(stream, "wgmma check", &ask_kernel<__half>, dim3(1), group_threads, sizeof(Coded<__half>),
         wrong);
}

}  // namespace atl::compute::cuda
