#include "compute/cpu/chunk.hpp"

#include <utility>

namespace atl::compute {

CpuChunk::CpuChunk(const BackendOptions& options, std::shared_ptr<std::int64_t> account)
    : options_(options), account_(std::move(account)) {
  HostArena arena(HostArena::Mode::take);
  memory = CpuChunkMemory(options, arena);
  memory_bytes_ = arena.bytes();
  x = memory.x.as<float>();
  dispatch_send = memory.send.data();
  combine_recv = memory.combined.data();
  packed_counts = memory.order.counts;
  output = options.part.attention.usual_output();
  normed = memory.shared.normed.data();
  head_sums = memory.shared.head_sums.as<float>();
  heads_send = memory.shared.heads_send.data();
  heads_recv = memory.shared.heads_recv.data();
  output_send = memory.shared.output_send.data();
  output_recv = memory.shared.output_recv.data();
  across_send = memory.across_send.data();
  across_return = memory.across_return.data();
  if (options_.across) room_.forwarded = even_forward_room(options_).forwarded;
  *account_ += bytes();
}

CpuChunk::~CpuChunk() {
  *account_ -= bytes();
}

void CpuChunk::reserve_receive(std::int64_t rows) {
  if (rows <= receive_capacity) return;
  *account_ -= bytes();
  receive_capacity = grown_receive_capacity(rows, receive_capacity);
  const auto half = static_cast<std::size_t>(receive_bytes(options_, receive_capacity) / 2);
  received_ = AlignedBuffer();
  results_ = AlignedBuffer();
  received_ = AlignedBuffer(half);
  results_ = AlignedBuffer(half);
  dispatch_recv = received_.data();
  combine_send = results_.data();
  *account_ += bytes();
}

void CpuChunk::reserve_across(const NodeRows& rows, std::int64_t forwarded) {
  if (rows.arrived <= room_.arrived && rows.arrived_returns <= room_.returned &&
      forwarded <= room_.forwarded && !forward.order.returns.empty()) {
    return;
  }
  *account_ -= bytes();
  const ForwardRoom before = room_;
  room_ = {grown_receive_capacity(rows.arrived, before.arrived),
           grown_receive_capacity(rows.arrived_returns, before.returned),
           grown_receive_capacity(forwarded, before.forwarded)};
  if (room_.forwarded > before.forwarded) {
    const auto half = static_cast<std::size_t>(receive_bytes(options_, room_.forwarded) / 2);
    memory_bytes_ +=
        2 * static_cast<std::int64_t>(half) - memory.send.bytes() - memory.combined.bytes();
    for (AlignedBuffer* buffer : {&memory.send, &memory.combined}) {
      *buffer = AlignedBuffer();
      *buffer = AlignedBuffer(half);
    }
    dispatch_send = memory.send.data();
    combine_recv = memory.combined.data();
  }
  forward = CpuForwardMemory();
  HostArena arena(HostArena::Mode::take);
  forward = CpuForwardMemory(options_, arena, room_);
  forward_bytes_ = arena.bytes();
  across_recv = forward.recv.data();
  across_done = forward.done.data();
  *account_ += bytes();
}

void CpuChunk::reserve_experts(const ExpertRoom& room) {
  if (room.all <= expert_room_.all && room.own <= expert_room_.own) return;
  *account_ -= bytes();
  expert_room_ = {grown_receive_capacity(room.all, expert_room_.all),
                  grown_receive_capacity(room.own, expert_room_.own)};
  experts = CpuExpertMemory();
  HostArena arena(HostArena::Mode::take);
  experts = CpuExpertMemory(options_, arena, expert_room_);
  expert_bytes_ = arena.bytes();
  expert_rows = experts.rows.data();
  inner_rows = experts.inner.data();
  down_send = experts.send.data();
  down_recv = experts.recv.data();
  *account_ += bytes();
}

void CpuChunk::reserve_inner(std::int64_t bytes) {
  if (bytes <= inner.bytes()) return;
  *account_ -= this->bytes();
  inner = AlignedBuffer(static_cast<std::size_t>(bytes));
  *account_ += this->bytes();
}

std::int64_t CpuChunk::bytes() const {
  return memory_bytes_ + forward_bytes_ + expert_bytes_ + inner.bytes() + received_.bytes() +
         results_.bytes();
}

}  // namespace atl::compute
