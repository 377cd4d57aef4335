#include "comm/transports/transport.hpp"

#include <array>

namespace atl::comm {

RowType::RowType(std::size_t row_bytes) {
  check(MPI_Type_contiguous(to_int(row_bytes, "bytes of a row"), MPI_BYTE, &type_),
        "MPI_Type_contiguous");
  check(MPI_Type_commit(&type_), "MPI_Type_commit");
}

RowType::~RowType() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized == 0) MPI_Type_free(&type_);
}

std::span<const TransportInfo> transports() {
  static constexpr std::array<TransportInfo, 3> table = {{
      {TransportKind::ialltoallv, "ialltoallv", false, make_ialltoallv},
      {TransportKind::pairwise, "pairwise", false, make_pairwise},
      {TransportKind::pairwise_staged, "pairwise-staged", true, make_pairwise_staged},
  }};
  return table;
}

const TransportInfo& info_of(TransportKind kind) {
  return transports()[static_cast<std::size_t>(kind)];
}

}  // namespace atl::comm
