#pragma once
// What every backend checks and converts before it takes a model: options, element types.

#include <span>

#include "compute/aligned_buffer.hpp"
#include "compute/backend.hpp"

namespace atl::compute {

/// Throws Error unless a backend that takes heads up to `largest_head_dim` can be set up so.
void check_options(const BackendOptions& options, int largest_head_dim);

/// Throws Error unless this part of attention can be computed of the chunk's rows, for which
/// `options` (as the chunk sees them) have room. Puts heads_send, by OutputCut::columns and either,
/// where all_rows says.
void place_attention(const BackendOptions& options, Chunk& chunk, AttentionPart part);

/// Throws Error unless this part of experts can be computed of such rows.
void check_experts(const BackendOptions& options, const Chunk& chunk,
                   std::span<const RowBlock> blocks, ExpertPart part);

/// A vector as float32, in one of the buffers: those of models that files of version 1 describe are
/// rounded to the activations' type first.
const float* vector_as_floats(const BackendOptions& options, const HostTensor& tensor,
                              AlignedBuffer& rounded, AlignedBuffer& floats);

/// `tensor` as elements of type `to`; `buffer` holds them if they had to be converted. What is kept
/// as codes is first rounded to the tensor's type.
const void* converted(const HostTensor& tensor, DType to, AlignedBuffer& buffer);

}  // namespace atl::compute
