#include "comm/communicator.hpp"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <string_view>
#include <thread>
#include <utility>

#include "comm/watchdog.hpp"

namespace atl::comm {

void check(int code, std::string_view call, std::source_location where) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail("{} failed ({}; {}:{})", call, std::string_view(text, static_cast<std::size_t>(length)),
       where.file_name(), where.line());
}

int to_int(std::size_t value, std::string_view what) {
  require(value <= static_cast<std::size_t>(std::numeric_limits<int>::max()),
          "{} is {} (MPI counts at most 2147483647); use more chunks or fewer tokens a step", what,
          value);
  return static_cast<int>(value);
}

Communicator::Communicator(MPI_Comm comm, bool owned) : comm_(comm), owned_(owned) {
  check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
}

Communicator Communicator::world() {
  return {MPI_COMM_WORLD, false};
}

Communicator::Communicator(Communicator&& other) noexcept
    : comm_(std::exchange(other.comm_, MPI_COMM_NULL)),
      owned_(std::exchange(other.owned_, false)),
      rank_(other.rank_),
      size_(other.size_) {}

Communicator& Communicator::operator=(Communicator&& other) noexcept {
  std::swap(comm_, other.comm_);
  std::swap(owned_, other.owned_);
  std::swap(rank_, other.rank_);
  std::swap(size_, other.size_);
  return *this;
}

Communicator::~Communicator() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  // MPI_Comm_free is collective: while an exception unwinds one rank the others may never call it.
  if (!owned_ || finalized != 0 || std::uncaught_exceptions() != 0) return;
  const Waiting waiting("MPI_Comm_free");
  MPI_Comm_free(&comm_);
}

Communicator Communicator::duplicate() const {
  const Waiting waiting("MPI_Comm_dup");
  MPI_Comm copy = MPI_COMM_NULL;
  check(MPI_Comm_dup(comm_, &copy), "MPI_Comm_dup");
  MPI_Comm_set_errhandler(copy, MPI_ERRORS_RETURN);
  return {copy, true};
}

Communicator Communicator::split(int group) const {
  const Waiting waiting("MPI_Comm_split");
  MPI_Comm part = MPI_COMM_NULL;
  check(MPI_Comm_split(comm_, group, rank_, &part), "MPI_Comm_split");
  MPI_Comm_set_errhandler(part, MPI_ERRORS_RETURN);
  return {part, true};
}

Communicator Communicator::split_shared() const {
  const Waiting waiting("MPI_Comm_split_type");
  MPI_Comm node = MPI_COMM_NULL;
  check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node),
        "MPI_Comm_split_type");
  MPI_Comm_set_errhandler(node, MPI_ERRORS_RETURN);
  return {node, true};
}

Communicator Communicator::split(int color, int key) const {
  const Waiting waiting("MPI_Comm_split");
  MPI_Comm part = MPI_COMM_NULL;
  check(MPI_Comm_split(comm_, color, key, &part), "MPI_Comm_split");
  MPI_Comm_set_errhandler(part, MPI_ERRORS_RETURN);
  return {part, true};
}

void Communicator::wait(MPI_Request& request, const char* call) const {
  constexpr int polls_before_sleep = 10;
  constexpr std::chrono::microseconds sleep(20);
  const Waiting waiting(call);
  int done = 0;
  for (int polls = 0;; ++polls) {
    check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), call);
    if (done != 0) return;
    if (polls < polls_before_sleep) {
      sched_yield();
    } else {
      std::this_thread::sleep_for(sleep);
    }
  }
}

void Communicator::barrier() const {
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Ibarrier(comm_, &request), "MPI_Ibarrier");
  wait(request, "MPI_Ibarrier");
}

MPI_Request Communicator::start_allgather(const void* value, void* all, std::size_t bytes) const {
  const int count = to_int(bytes, "bytes of an allgather");
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Iallgather(value, count, MPI_BYTE, all, count, MPI_BYTE, comm_, &request),
        "MPI_Iallgather");
  return request;
}

namespace {
MPI_Op op_of(Communicator::Reduce op) {
  switch (op) {
    case Communicator::Reduce::sum:
      return MPI_SUM;
    case Communicator::Reduce::max:
      return MPI_MAX;
    case Communicator::Reduce::min:
      return MPI_MIN;
  }
  return MPI_OP_NULL;
}
}  // namespace

void Communicator::allreduce(std::span<double> values, Reduce op) const {
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Iallreduce(MPI_IN_PLACE, values.data(), to_int(values.size(), "values of a reduction"),
                       MPI_DOUBLE, op_of(op), comm_, &request),
        "MPI_Iallreduce");
  wait(request, "MPI_Iallreduce");
}

void Communicator::allreduce(std::span<std::int64_t> values, Reduce op) const {
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Iallreduce(MPI_IN_PLACE, values.data(), to_int(values.size(), "values of a reduction"),
                       MPI_INT64_T, op_of(op), comm_, &request),
        "MPI_Iallreduce");
  wait(request, "MPI_Iallreduce");
}

void Communicator::allreduce_max_where(std::span<const double> values, std::span<double> largest,
                                       std::span<int> where) const {
  struct Entry {
    double value;
    int rank;
  };
  std::vector<Entry> mine(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) mine[i] = {values[i], rank_};
  std::vector<Entry> all(values.size());
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Iallreduce(mine.data(), all.data(), to_int(values.size(), "values of a reduction"),
                       MPI_DOUBLE_INT, MPI_MAXLOC, comm_, &request),
        "MPI_Iallreduce");
  wait(request, "MPI_Iallreduce");
  for (std::size_t i = 0; i < values.size(); ++i) {
    largest[i] = all[i].value;
    where[i] = all[i].rank;
  }
}

namespace {
constexpr std::size_t max_piece = std::size_t{1} << 28;  // bytes of one message
}

void Communicator::broadcast(std::span<std::byte> bytes, int root) const {
  for (std::size_t at = 0; at < bytes.size(); at += max_piece) {
    const std::size_t piece = std::min(max_piece, bytes.size() - at);
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ibcast(bytes.data() + at, to_int(piece, "piece"), MPI_BYTE, root, comm_, &request),
          "MPI_Ibcast");
    wait(request, "MPI_Ibcast");
  }
}

void Communicator::share(std::span<std::byte> all, std::span<const std::size_t> bounds) const {
  require(bounds.size() == static_cast<std::size_t>(size_) + 1, "share: wrong number of bounds");
  std::vector<int> counts;
  std::vector<int> offsets;
  for (std::size_t rank = 0; rank + 1 < bounds.size(); ++rank) {
    counts.push_back(to_int(bounds[rank + 1] - bounds[rank], "a rank's share of bytes"));
    offsets.push_back(to_int(bounds[rank], "bytes that ranks share"));
  }
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, all.data(), counts.data(),
                        offsets.data(), MPI_BYTE, comm_, &request),
        "MPI_Iallgatherv");
  wait(request, "MPI_Iallgatherv");
}

std::string Communicator::broadcast(const std::string& text, int root) const {
  auto bytes = static_cast<std::uint64_t>(text.size());
  broadcast(std::as_writable_bytes(std::span(&bytes, 1)), root);
  std::string result = rank_ == root ? text : std::string(bytes, '\0');
  broadcast(std::as_writable_bytes(std::span(result)), root);
  return result;
}

std::vector<std::string> Communicator::gather(const std::string& text, int root) const {
  return gather_sized(text, allgather(static_cast<std::uint64_t>(text.size())), root);
}

void Communicator::send_text(const std::string& text, int to, int tag) const {
  for (std::size_t at = 0; at < text.size(); at += max_piece) {
    const std::size_t piece = std::min(max_piece, text.size() - at);
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Isend(text.data() + at, to_int(piece, "piece"), MPI_BYTE, to, tag, comm_, &request),
          "MPI_Isend");
    wait(request, "MPI_Isend");
  }
}

std::string Communicator::receive_text(std::uint64_t size, int from, int tag) const {
  std::string received(size, '\0');
  for (std::size_t at = 0; at < received.size(); at += max_piece) {
    const std::size_t piece = std::min(max_piece, received.size() - at);
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Irecv(received.data() + at, to_int(piece, "piece"), MPI_BYTE, from, tag, comm_,
                    &request),
          "MPI_Irecv");
    wait(request, "MPI_Irecv");
  }
  return received;
}

std::vector<std::string> Communicator::gather_sized(const std::string& text,
                                                    std::span<const std::uint64_t> sizes,
                                                    int root) const {
  constexpr int tag = 7;
  std::vector<std::string> all;
  if (rank_ != root) {
    send_text(text, root, tag);
    return all;
  }
  for (int source = 0; source < size_; ++source) {
    all.push_back(
        source == root ? text : receive_text(sizes[static_cast<std::size_t>(source)], source, tag));
  }
  return all;
}

std::string Communicator::scatter_sized(std::vector<std::string> texts, std::uint64_t size,
                                        int root) const {
  constexpr int tag = 8;
  if (rank_ != root) return receive_text(size, root, tag);
  for (int to = 0; to < size_; ++to) {
    if (to != root) send_text(texts[static_cast<std::size_t>(to)], to, tag);
  }
  return std::move(texts[static_cast<std::size_t>(root)]);
}

std::vector<std::string> Communicator::allgather_texts(const std::string& text) const {
  const auto sizes = allgather(static_cast<std::uint64_t>(text.size()));
  std::string joined;
  for (const std::string& one : gather_sized(text, sizes, 0)) joined += one;
  joined = broadcast(joined, 0);
  std::vector<std::string> all;
  std::size_t at = 0;
  for (const std::uint64_t size : sizes) {
    all.push_back(joined.substr(at, size));
    at += size;
  }
  return all;
}

Failure failure_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return {error.what(), error.exit_code()};
  } catch (const std::bad_alloc&) {
    return {"out of memory (an allocation was refused); use more ranks, nodes or a smaller model",
            1};
  } catch (const std::exception& error) {
    return {error.what(), 1};
  }
  return {};
}

void Communicator::agree(const std::function<void()>& work) const {
  auto [message, code] = failure_of(work);
  const auto codes = allgather(code);
  const auto first = std::find_if(codes.begin(), codes.end(), [](int c) { return c != 0; });
  if (first == codes.end()) return;
  const int reporter = static_cast<int>(first - codes.begin());
  message = broadcast(message, reporter);
  if (size_ > 1 && reporter != 0) message = fmt::format("{} (on rank {})", message, reporter);
  throw AgreedFailure(message, *first, rank_ == reporter);
}

void Communicator::abort(int exit_code) const {
  MPI_Abort(comm_, exit_code);
  std::abort();
}

}  // namespace atl::comm
