// Stands before the toolkit's mma.h: nvcuda::wmma for 16x16x16 products of bfloat16 or float16 with
// float32 sums. A fragment's elements lie on the lanes in an order that device code must not know:
// it depends on the kind of fragment here, as it does on a GPU.
#pragma once

#include "cuda_runtime.h"

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int m, int n, int k, class T, class Layout = void>
class fragment {
 public:
  static_assert(m == 16 && n == 16 && k == 16, "the emulator knows 16x16x16 only");
  // A and B are held twice on a GPU; here each element lies on one lane.
  static constexpr int num_elements = 8;
  static constexpr int num_storage_elements = num_elements;
  using element_type = T;
  T x[num_elements];
};

}  // namespace nvcuda::wmma

namespace emulated {

/// Row and column of element i of a lane, for one kind of fragment.
template <class Use>
constexpr std::pair<int, int> place(int lane, int i) {
  if constexpr (std::is_same_v<Use, nvcuda::wmma::matrix_a>) return {lane % 16, lane / 16 * 8 + i};
  if constexpr (std::is_same_v<Use, nvcuda::wmma::matrix_b>) return {lane / 16 * 8 + i, lane % 16};
  return {lane / 4 + i / 4 * 8, lane % 4 * 4 + i % 4};
}

inline float as_float(float x) { return x; }
inline float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
inline float as_float(__half x) { return __half2float(x); }

void check_wmma_pointer(const void* pointer, unsigned leading, std::size_t element_bytes,
                        const char* name, const Where& where);

template <class D, class A, class B, class C>
struct Product {
  D* d;
  const A* a;
  const B* b;
  const C* c;
};

template <class UseA, class UseB, class D, class A, class B, class C>
void multiply(void* const* lanes) {
  float a[16][16], b[16][16];
  for (int lane = 0; lane < warp_size; ++lane) {
    const auto* mine = static_cast<const Product<D, A, B, C>*>(lanes[lane]);
    for (int i = 0; i < 8; ++i) {
      const auto [row, inner] = place<UseA>(lane, i);
      a[row][inner] = as_float(mine->a->x[i]);
      const auto [inner_b, column] = place<UseB>(lane, i);
      b[inner_b][column] = as_float(mine->b->x[i]);
    }
  }
  for (int lane = 0; lane < warp_size; ++lane) {
    const auto* mine = static_cast<const Product<D, A, B, C>*>(lanes[lane]);
    for (int i = 0; i < 8; ++i) {
      const auto [row, column] = place<nvcuda::wmma::accumulator>(lane, i);
      float sum = 0;
      for (int inner = 0; inner < 16; ++inner) sum += a[row][inner] * b[inner][column];
      mine->d->x[i] = mine->c->x[i] + sum;
    }
  }
}

}  // namespace emulated

namespace nvcuda::wmma {

template <class Use, class T, class Layout>
void fill_fragment(fragment<Use, 16, 16, 16, T, Layout>& f,
                   const std::type_identity_t<T>& value) {
  for (T& x : f.x) x = value;
}

template <class Use, class T, class Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& f, const T* pointer, unsigned leading,
                      const emulated::Where& where = emulated::Where::current()) {
  const int lane = emulated::lane_of_thread();
  emulated::check_wmma_pointer(pointer, leading, sizeof(T), "wmma::load_matrix_sync", where);
  for (int i = 0; i < f.num_elements; ++i) {
    const auto [row, column] = emulated::place<Use>(lane, i);
    f.x[i] = std::is_same_v<Layout, row_major> ? pointer[row * leading + column]
                                               : pointer[column * leading + row];
  }
}

template <class T>
void load_matrix_sync(fragment<accumulator, 16, 16, 16, T>& f, const T* pointer, unsigned leading,
                      layout_t layout,
                      const emulated::Where& where = emulated::Where::current()) {
  const int lane = emulated::lane_of_thread();
  emulated::check_wmma_pointer(pointer, leading, sizeof(T), "wmma::load_matrix_sync", where);
  for (int i = 0; i < f.num_elements; ++i) {
    const auto [row, column] = emulated::place<accumulator>(lane, i);
    f.x[i] =
        layout == mem_row_major ? pointer[row * leading + column] : pointer[column * leading + row];
  }
}

template <class T>
void store_matrix_sync(T* pointer, const fragment<accumulator, 16, 16, 16, T>& f, unsigned leading,
                       layout_t layout,
                       const emulated::Where& where = emulated::Where::current()) {
  const int lane = emulated::lane_of_thread();
  emulated::check_wmma_pointer(pointer, leading, sizeof(T), "wmma::store_matrix_sync", where);
  for (int i = 0; i < f.num_elements; ++i) {
    const auto [row, column] = emulated::place<accumulator>(lane, i);
    (layout == mem_row_major ? pointer[row * leading + column]
                             : pointer[column * leading + row]) = f.x[i];
  }
}

template <class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& d,
              const fragment<matrix_a, 16, 16, 16, T, LayoutA>& a,
              const fragment<matrix_b, 16, 16, 16, T, LayoutB>& b,
              const fragment<accumulator, 16, 16, 16, float>& c,
              const emulated::Where& where = emulated::Where::current()) {
  using A = fragment<matrix_a, 16, 16, 16, T, LayoutA>;
  using B = fragment<matrix_b, 16, 16, 16, T, LayoutB>;
  using Sum = fragment<accumulator, 16, 16, 16, float>;
  if (emulated::living_lanes() != 0xffffffffU)
    emulated::device_error("wmma::mma_sync", where, "needs all 32 lanes of the warp");
  emulated::Product<Sum, A, B, Sum> mine{&d, &a, &b, &c};
  emulated::warp_collective(0xffffffffU, &mine,
                            &emulated::multiply<matrix_a, matrix_b, Sum, A, B, Sum>,
                            "wmma::mma_sync", where);
}

}  // namespace nvcuda::wmma
