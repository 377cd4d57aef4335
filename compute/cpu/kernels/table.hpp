#pragma once
// The table of kernels, included once per instruction set (see simd.hpp for why all is anonymous).

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/kernels/activation.hpp"
#include "compute/cpu/kernels/attention.hpp"
#include "compute/cpu/kernels/codes.hpp"
#include "compute/cpu/kernels/log_probs.hpp"
#include "compute/cpu/kernels/merge.hpp"
#include "compute/cpu/kernels/norm.hpp"
#include "compute/cpu/kernels/pack.hpp"
#include "compute/cpu/kernels/panels.hpp"
#include "compute/cpu/kernels/rope.hpp"
#include "compute/cpu/kernels/router.hpp"
#include "compute/cpu/kernels/rows.hpp"
#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

template <class T>
Kernels make_table(const char* isa) {
  Kernels table;
  table.isa = isa;
  table.rms_norm = &rms_norm<T>;
  table.head_squares = &head_squares<T>;
  table.add = &add<T>;
  table.add_sum = &add_sum<T, float>;
  table.add_rounded_sum = &add_sum<T, T>;
  table.gelu = &gelu<T>;
  table.swiglu = &swiglu<T>;
  table.to_float = &to_float<T>;
  table.from_float = &from_float<T>;
  table.swiglu_clamped = &swiglu_clamped<T>;
  table.add_floats = &add_floats;
  table.scale = &scale;
  table.norm_in_place = &norm_in_place<T>;
  table.rope = &rope<T>;
  table.latent_rope = &latent_rope<T>;
  table.pack_keys = &pack_keys<T>;
  table.attend = &attend<T>;
  table.merge_splits = &merge_splits<T>;
  table.choose = &choose;
  table.weights_of = &weights_of;
  table.merge = &merge<T>;
  table.fold = &fold<T>;
  table.log_prob = &log_prob;
  table.panel_columns = panel_columns;
  table.panel_step = panel_step<T>;
  table.pack_panel = &pack_panel<T>;
  table.pack_codes = &pack_codes<T>;
  table.panel_gemm = &panel_gemm<T>;
  return table;
}

const Kernels& table_of(DType dtype, const char* isa) {
  static const Kernels bfloat16 = make_table<Bf16>(isa);
  static const Kernels float16 = make_table<F16>(isa);
  static const Kernels float32 = make_table<float>(isa);
  switch (dtype) {
    case DType::bfloat16:
      return bfloat16;
    case DType::float16:
      return float16;
    case DType::float32:
    case DType::uint8:
      break;
  }
  return float32;
}

}  // namespace
}  // namespace atl::compute
