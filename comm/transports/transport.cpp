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

std::unique_ptr<Transport> make_transport(TransportKind kind, const TransportSetup& setup) {
  constexpr std::array makers = {make_ialltoallv, make_pairwise, make_pairwise_staged};
  static_assert(makers.size() == transports.size());
  return makers[static_cast<std::size_t>(kind)](setup);
}

}  // namespace atl::comm
