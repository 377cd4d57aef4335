#include "comm/lane.hpp"

namespace atl::comm {

Lane::Lane(const Communicator& group, const LaneOptions& options)
    : comm_(group.duplicate()),
      row_type_(options.row_bytes),
      counters_(comm_, options.peers ? *options.peers : all_others(comm_),
                options.counts_per_member, options.row_bytes, options.first_message_bytes),
      rows_(make_transport(options.transport,
                           {&comm_, row_type_.raw(), options.row_bytes, options.device})),
      posted_(group.size()) {}

void Lane::start(const RowMove& move, const void* send, void* recv) {
  posted_ = move;  // of equal size: copies into the storage that is there
  rows_->start(posted_, send, recv);
}

void Lane::start_told(const RowMove& move, const void* send, void* recv) {
  posted_ = move;
  counters_.take_rows(posted_, recv);
  rows_->start(posted_, send, recv);
}

bool Lane::test() {
  poller_.clear();
  rows_->poll_with(poller_);
  poller_.test();
  return done();
}

}  // namespace atl::comm
