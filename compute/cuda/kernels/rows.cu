// Moving rows: embedding, packing, KV pages.

#include <algorithm>

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/copy.cuh"

namespace atl::compute::cuda {

namespace {

constexpr int threads = copy_threads;

/// Widens and scales N elements at a time.
template <class T, int N>
__global__ void __launch_bounds__(threads)
    embed_kernel(const T* table, const std::int32_t* tokens, float* out, int hidden, float scale) {
  const std::int64_t row = blockIdx.x;
  const T* from = table + std::int64_t{tokens[row]} * hidden;
  float* to = out + row * hidden;
  const int step = static_cast<int>(blockDim.x) * N;
#pragma unroll in_flight
  for (int i = static_cast<int>(threadIdx.x) * N; i < hidden; i += step) {
    float values[N];
    to_floats(load_raw<N>(from + i), values);
#pragma unroll
    for (int k = 0; k < N; ++k) values[k] *= scale;
    store_floats(to + i, values);
  }
}

/// A row is `units` of type U, read once and written top_k times.
template <class U>
__global__ void __launch_bounds__(copy_threads)
    pack_kernel(const U* rows, const std::int32_t* slots, U* packed, int top_k, int units) {
  const std::int64_t row = blockIdx.x;
  copy_row(rows + row * units, units, top_k,
           [&](int j) { return packed + std::int64_t{slots[row * top_k + j]} * units; });
}

/// One block per row and member.
template <class U>
__global__ void __launch_bounds__(copy_threads)
    join_kernel(const U* received, std::int64_t member_rows, const U* own, int place, U* out,
                int units) {
  const std::int64_t row = blockIdx.x;
  const int member = static_cast<int>(blockIdx.y);
  const U* from =
      member == place ? own + row * units : received + (member * member_rows + row) * units;
  U* to = out + (row * gridDim.y + member) * units;
  const int step = static_cast<int>(blockDim.x);
#pragma unroll in_flight
  for (int i = static_cast<int>(threadIdx.x); i < units; i += step) to[i] = from[i];
}

template <class T, class F>
__global__ void __launch_bounds__(threads)
    sum_kernel(const F* received, const F* own, int members, int place, T* out, int width) {
  const std::int64_t row = blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x)) {
    float total = 0;
    for (int m = 0; m < members; ++m) {
      total += to_float(m == place ? own[row * width + i]
                                   : received[(m * std::int64_t{gridDim.x} + row) * width + i]);
    }
    out[row * width + i] = round_to<T>(total);
  }
}

/// Rows of one sequence between its pages, `paged`, and [position, kv_head, units]; one block per
/// position.
template <class U, bool gather>
__global__ void __launch_bounds__(threads)
    move_kv_kernel(KvPages kv, U* paged, const std::int32_t* pages, int first_position, int units,
                   U* rows) {
  const int position = first_position + static_cast<int>(blockIdx.x);
  const int row_units = kv.num_kv_heads * units;
  const std::int64_t page = std::int64_t{pages[position / kv.page_tokens]} * kv.num_kv_heads;
  const std::int64_t token = position % kv.page_tokens;
  U* row = rows + std::int64_t{blockIdx.x} * row_units;
  for (int i = static_cast<int>(threadIdx.x); i < row_units; i += static_cast<int>(blockDim.x)) {
    const std::int64_t at = ((page + i / units) * kv.page_tokens + token) * units + i % units;
    if constexpr (gather) {
      row[i] = paged[at];
    } else {
      paged[at] = row[i];
    }
  }
}

template <bool gather>
void move_kv(cudaStream_t stream, std::string_view name, DType dtype, const KvPages& kv,
             const std::int32_t* pages, int first_position, int num_positions, void* keys,
             void* values) {
  const auto move = [&](void* paged, int width, void* rows) {
    const auto run = [&](auto unit, int units) {
      using U = decltype(unit);
      launch(stream, name, &move_kv_kernel<U, gather>, dim3(static_cast<unsigned>(num_positions)),
             static_cast<unsigned>(threads_for(kv.num_kv_heads * units, 1, threads)), 0, kv,
             static_cast<U*>(paged), pages, first_position, units, static_cast<U*>(rows));
    };
    with_unit(dtype, width, run, paged, rows);
  };
  move(kv.keys, kv.head_dim, keys);
  if (kv.values != kv.keys) move(kv.values, kv.values_dim(), values);
}

}  // namespace

void embed(cudaStream_t stream, DType dtype, const void* table, const std::int32_t* tokens,
           float* x, int num_tokens, int hidden, float scale) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    const auto run = [&](auto kernel, int width) {
      launch(stream, "embed", kernel, dim3(static_cast<unsigned>(num_tokens)),
             static_cast<unsigned>(threads_for(hidden / width, in_flight, threads)), 0,
             static_cast<const T*>(table), tokens, x, hidden, scale);
    };
    if (rows_are_aligned(static_cast<std::size_t>(hidden) * sizeof(T), table, x)) {
      run(&embed_kernel<T, wide<T>>, wide<T>);
    } else {
      run(&embed_kernel<T, 1>, 1);
    }
  });
}

void pack(cudaStream_t stream, DType dtype, const void* rows, const std::int32_t* slots,
          void* packed, int num_tokens, int top_k, int hidden) {
  const auto run = [&](auto unit, int units) {
    using U = decltype(unit);
    launch(stream, "pack", &pack_kernel<U>, dim3(static_cast<unsigned>(num_tokens)),
           static_cast<unsigned>(threads_for(units, in_flight, threads)), 0,
           static_cast<const U*>(rows), slots, static_cast<U*>(packed), top_k, units);
  };
  with_unit(dtype, hidden, run, rows, packed);
}

void join_columns(cudaStream_t stream, DType dtype, const MemberRows& rows, void* out) {
  const auto run = [&](auto unit, int units) {
    using U = decltype(unit);
    launch(stream, "join_columns", &join_kernel<U>,
           dim3(static_cast<unsigned>(rows.num_rows), static_cast<unsigned>(rows.members)),
           static_cast<unsigned>(threads_for(units, in_flight, threads)), 0,
           static_cast<const U*>(rows.received),
           std::max<std::int64_t>(rows.member_rows, rows.num_rows), static_cast<const U*>(rows.own),
           rows.place, static_cast<U*>(out), units);
  };
  with_unit(dtype, rows.width, run, rows.received, rows.own, out);
}

void sum_members(cudaStream_t stream, DType dtype, DType summands, const MemberRows& rows,
                 void* out) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    const auto run = [&](auto of_rows) {
      using F = decltype(of_rows);
      launch(stream, "sum_members", &sum_kernel<T, F>, dim3(static_cast<unsigned>(rows.num_rows)),
             static_cast<unsigned>(threads_for(rows.width, 1, threads)), 0,
             static_cast<const F*>(rows.received), static_cast<const F*>(rows.own), rows.members,
             rows.place, static_cast<T*>(out), rows.width);
    };
    summands == DType::float32 ? run(float{}) : run(T{});
  });
}

void gather_kv(cudaStream_t stream, DType dtype, const KvPages& kv, const std::int32_t* pages,
               int first_position, int num_positions, void* keys, void* values) {
  move_kv<true>(stream, "gather_kv", dtype, kv, pages, first_position, num_positions, keys, values);
}

void scatter_kv(cudaStream_t stream, DType dtype, const KvPages& kv, const std::int32_t* pages,
                int first_position, int num_positions, const void* keys, const void* values) {
  move_kv<false>(stream, "scatter_kv", dtype, kv, pages, first_position, num_positions,
                 const_cast<void*>(keys), const_cast<void*>(values));
}

}  // namespace atl::compute::cuda
