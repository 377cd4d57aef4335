// Rows that go to each node once: packed with tails, forwarded inside the node by what the tails
// say, and their results on the way back.

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/copy.cuh"
#include "compute/cuda/kernels/groups.cuh"
#include "compute/cuda/kernels/norm.cuh"

namespace atl::compute::cuda {

namespace {

/// One bit for each choice that is the first of its row.
__device__ inline unsigned first_choices(const std::int32_t* sent, int top_k, int lane) {
  const std::int32_t row = lane < top_k ? sent[lane] : -1;
  const unsigned same = __match_any_sync(all_lanes, row);
  const bool first = (same & ((1U << static_cast<unsigned>(lane)) - 1U)) == 0;
  return __ballot_sync(all_lanes, static_cast<int>(lane < top_k && first));
}

template <class U>
__global__ void __launch_bounds__(copy_threads)
    pack_for_nodes_kernel(PackForNodesArgs args, int units) {
  const std::int64_t token = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const std::int64_t first = token * args.top_k;
  const std::int32_t* sent = args.sent + first;
  const unsigned firsts = first_choices(sent, args.top_k, lane);
  const auto packed_row = [&](int j) {
    return static_cast<std::byte*>(args.packed) + sent[j] * args.form.bytes;
  };
  copy_row(static_cast<const U*>(args.rows) + token * units, units, args.top_k, [&](int j) {
    const bool there = ((firsts >> static_cast<unsigned>(j)) & 1U) != 0;
    return there ? reinterpret_cast<U*>(packed_row(j)) : nullptr;
  });
  const int choice = static_cast<int>(threadIdx.x);
  if (choice >= args.top_k) return;
  const ReplicaPlace& replica = args.replicas.replicas[args.chosen[first + choice]];
  for (int j = 0; j < args.top_k; ++j) {
    if (((firsts >> static_cast<unsigned>(j)) & 1U) == 0) continue;
    const std::int32_t node = args.replicas.replicas[args.chosen[first + j]].node;
    args.form.places_of(packed_row(j))[choice] =
        replica.node == node ? replica.place - args.first_of_node[node] : -1;
    args.form.weights_of(packed_row(j))[choice] = args.weights[first + choice];
  }
}

__device__ inline const std::byte* row_of(const ForwardedRows& rows, std::int64_t q) {
  return q < rows.num_own
             ? static_cast<const std::byte*>(rows.own) + q * rows.form.bytes
             : static_cast<const std::byte*>(rows.arrived) + (q - rows.num_own) * rows.form.bytes;
}

/// After the places come two groups, of results: own rows', arrived rows'.
__device__ inline int return_group(const ForwardedRows& rows, std::int64_t q) {
  return rows.num_places + (q < rows.num_own ? 0 : 1);
}

/// Of a (row, choice).
struct Forwarded {
  ForwardedRows rows;

  template <class Before>
  __device__ void add(std::int64_t i, const Before& before) const {
    const std::int64_t q = i / rows.top_k;
    const auto j = static_cast<int>(i % rows.top_k);
    if (j == 0) rows.returns[q] += before(return_group(rows, q));
    if (rows.slots[i] >= 0) rows.slots[i] += before(rows.form.places_of(row_of(rows, q))[j]);
  }
};

__global__ void __launch_bounds__(group_threads)
    count_kernel(ForwardedRows rows, Groups groups, int rows_per_warp) {
  std::int32_t* all_counts = dynamic_shared<std::int32_t>();
  std::int32_t* counts = begin_tile(groups, all_counts);
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const WarpRows mine = rows_of_warp(rows_per_warp, rows.num_rows);
  for (std::int64_t q = mine.first; q < mine.last; ++q) {
    const std::int32_t place = lane < rows.top_k ? rows.form.places_of(row_of(rows, q))[lane] : -1;
    const int here = __popc(__ballot_sync(all_lanes, static_cast<int>(place >= 0)));
    if (lane < rows.top_k) {
      rows.slots[q * rows.top_k + lane] = place >= 0 ? counts[place]++ : -1;
    }
    if (lane == 0) {
      const int group = return_group(rows, q);
      rows.returns[q] = counts[group];
      counts[group] += here == rows.top_k ? 1 : here;
    }
    __syncwarp();
  }
  end_tile(groups, all_counts, Forwarded{rows}, mine, rows.top_k);
}

template <class U>
__global__ void __launch_bounds__(copy_threads)
    forward_kernel(ForwardedRows rows, U* forwarded, int units) {
  const std::int64_t q = blockIdx.x;
  const std::int32_t* slots = rows.slots + q * rows.top_k;
  copy_row(reinterpret_cast<const U*>(row_of(rows, q)), units, rows.top_k, [&](int j) {
    return slots[j] < 0 ? nullptr : forwarded + std::int64_t{slots[j]} * units;
  });
}

template <class T, int N>
__global__ void __launch_bounds__(copy_threads)
    fold_kernel(ForwardedRows rows, const T* results, T* own_out, T* arrived_out) {
  const std::int64_t q = blockIdx.x;
  const int top_k = rows.top_k;
  const std::int32_t* slots = rows.slots + q * top_k;
  const float* weights = rows.form.weights_of(row_of(rows, q));
  T* out = (q < rows.num_own ? own_out : arrived_out) + std::int64_t{rows.returns[q]} * rows.hidden;
  bool all_here = true;
  for (int j = 0; j < top_k; ++j) all_here = all_here && slots[j] >= 0;
  const int step = static_cast<int>(blockDim.x) * N;
  for (int i = static_cast<int>(threadIdx.x) * N; i < rows.hidden; i += step) {
    if (all_here) {
      float total[N];
      sum_rows(results + i, rows.hidden, slots, weights, top_k, total);
      store_raw(out + i, to_raw<T>(total));
      continue;
    }
    T* to = out + i;
    for (int j = 0; j < top_k; ++j) {
      if (slots[j] < 0) continue;
      store_raw(to, load_raw<N>(results + std::int64_t{slots[j]} * rows.hidden + i));
      to += rows.hidden;
    }
  }
}

}  // namespace

void pack_for_nodes(cudaStream_t stream, DType dtype, const PackForNodesArgs& args) {
  const auto run = [&](auto unit, int units) {
    launch(stream, "pack_for_nodes", &pack_for_nodes_kernel<decltype(unit)>,
           dim3(static_cast<unsigned>(args.num_tokens)),
           static_cast<unsigned>(threads_for(units, in_flight, copy_threads)), 0, args, units);
  };
  with_unit(dtype, args.hidden, run, args.rows, args.packed);
}

void regroup(cudaStream_t stream, DType dtype, const ForwardedRows& rows, void* forwarded) {
  if (rows.num_rows == 0) return;
  Groups groups;
  groups.count = rows.num_groups();
  groups.ends[0] = rows.num_places;
  groups.ends[1] = rows.num_places + 1;
  groups.ends[2] = rows.num_places + 2;
  groups.scratch = rows.scratch;
  const GroupTiles tiles(rows.num_rows);
  launch(stream, "regroup", &count_kernel, dim3(static_cast<unsigned>(tiles.count)), group_threads,
         tile_shared_bytes(groups), rows, groups, tiles.rows_per_warp);
  launch_place(stream, "regroup", Forwarded{rows}, groups, rows.num_rows, rows.top_k);
  const auto run = [&](auto unit, int units) {
    using U = decltype(unit);
    launch(stream, "regroup", &forward_kernel<U>, dim3(static_cast<unsigned>(rows.num_rows)),
           static_cast<unsigned>(threads_for(units, in_flight, copy_threads)), 0, rows,
           static_cast<U*>(forwarded), units);
  };
  with_unit(dtype, rows.hidden, run, rows.own, rows.arrived, forwarded);
}

void fold(cudaStream_t stream, DType dtype, const ForwardedRows& rows, const void* results,
          void* own_out, void* arrived_out) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    const auto run = [&](auto kernel, int width) {
      launch(stream, "fold", kernel, dim3(static_cast<unsigned>(rows.num_rows)),
             static_cast<unsigned>(threads_for(rows.hidden / width, 1, copy_threads)), 0, rows,
             static_cast<const T*>(results), static_cast<T*>(own_out),
             static_cast<T*>(arrived_out));
    };
    if (rows_are_aligned(static_cast<std::size_t>(rows.hidden) * sizeof(T), results, own_out,
                         arrived_out)) {
      run(&fold_kernel<T, wide<T>>, wide<T>);
    } else {
      run(&fold_kernel<T, 1>, 1);
    }
  });
}

}  // namespace atl::compute::cuda
