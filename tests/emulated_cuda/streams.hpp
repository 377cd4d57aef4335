#pragma once
// What streams.cpp and graphs.cpp share with the queue.

#include "tests/emulated_cuda/queue.hpp"

namespace emulated {

cudaStream_t add_stream(bool blocking);
/// The handle ends now; what is queued still runs.
void remove_stream(cudaStream_t stream);
/// Adds work in no stream's order, only after what it names.
CompletionPtr enqueue_apart(Work work);
void for_each_stream(const std::function<void(CUstream_st&)>& visit);

}  // namespace emulated
