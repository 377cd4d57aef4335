#pragma once
// RAII over MPI: the environment, communicators, checked calls, agreement on errors.

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "compute/error.hpp"

namespace atl::comm {

/// Throws Error with MPI's own text unless `code` is MPI_SUCCESS.
void check(int code, std::string_view call,
           std::source_location where = std::source_location::current());

/// Casts a count to the int that MPI takes; throws Error where it does not fit.
int to_int(std::size_t value, std::string_view what);

/// How a piece of work ended: exit code 0, or the message to print.
struct Failure {
  std::string message;
  int exit_code = 0;
};
/// Runs `work`; what it throws becomes a message.
Failure failure_of(const std::function<void()>& work);

/// Thrown on every rank after one rank has reported a failure that all agreed on.
class AgreedFailure : public Error {
 public:
  AgreedFailure(const std::string& message, int code, bool reporter)
      : Error(message), code_(code), reporter_(reporter) {}
  int exit_code() const override { return code_; }
  bool reporter() const { return reporter_; }  ///< this rank prints the message, the others do not

 private:
  int code_;
  bool reporter_;
};

/// A communicator with checked, typed calls. Owns its handle unless it is the world.
class Communicator {
 public:
  static Communicator world();
  Communicator(Communicator&& other) noexcept;
  Communicator& operator=(Communicator&& other) noexcept;
  ~Communicator();

  int rank() const { return rank_; }
  int size() const { return size_; }
  MPI_Comm raw() const { return comm_; }
  int fortran_handle() const { return MPI_Comm_c2f(comm_); }

  Communicator duplicate() const;  ///< collective
  /// Collective; the ranks that name the same `group`, in their order here.
  Communicator split(int group) const;
  Communicator split_shared() const;  ///< collective; the ranks that share this node's memory
  /// Collective; the ranks that give the same `color` (from 0 on), in order of `key`.
  Communicator split(int color, int key) const;

  void barrier() const;

  /// Every rank's `value`, in rank order.
  template <class T>
  std::vector<T> allgather(const T& value) const {
    std::vector<T> all(static_cast<std::size_t>(size_));
    allgather_into(value, std::span<T>(all));
    return all;
  }
  /// The same into existing memory of size() entries; does not allocate.
  template <class T>
  void allgather_into(const T& value, std::span<T> all) const {
    static_assert(std::is_trivially_copyable_v<T>);
    require(all.size() == static_cast<std::size_t>(size_), "allgather: wrong number of entries");
    MPI_Request request = start_allgather(&value, all.data(), sizeof(T));
    wait(request, "MPI_Iallgather");
  }

  enum class Reduce { sum, max, min };
  void allreduce(std::span<double> values, Reduce op) const;        ///< in place
  void allreduce(std::span<std::int64_t> values, Reduce op) const;  ///< in place
  /// For each value the largest over all ranks and the lowest rank that has it.
  void allreduce_max_where(std::span<const double> values, std::span<double> largest,
                           std::span<int> where) const;

  /// Root's text on every rank.
  std::string broadcast(const std::string& text, int root) const;
  /// Root's bytes on every rank, in place.
  void broadcast(std::span<std::byte> bytes, int root) const;
  /// Root's value on every rank.
  template <class T>
  T broadcast_value(T value, int root) const {
    static_assert(std::is_trivially_copyable_v<T>);
    broadcast(std::as_writable_bytes(std::span(&value, 1)), root);
    return value;
  }
  /// In place: rank r has bytes [bounds[r], bounds[r + 1]) of `all`, afterwards every rank has all
  /// of them. `bounds` has size() + 1 entries.
  void share(std::span<std::byte> all, std::span<const std::size_t> bounds) const;
  /// Every rank's text on the root, in rank order; empty elsewhere. Any size (sent in pieces).
  std::vector<std::string> gather(const std::string& text, int root) const;
  /// The same where every rank knows already how many bytes each has; ranks other than the root
  /// return without waiting for one another.
  std::vector<std::string> gather_sized(const std::string& text,
                                        std::span<const std::uint64_t> sizes, int root) const;
  /// The way back: `texts` of the root, in rank order, each on its rank, which knows its size.
  std::string scatter_sized(std::vector<std::string> texts, std::uint64_t size, int root) const;
  /// Every rank's text on every rank, in rank order.
  std::vector<std::string> allgather_texts(const std::string& text) const;
  /// Every rank's vector on the root, in rank order; empty elsewhere.
  template <class T>
  std::vector<std::vector<T>> gather_vectors(std::span<const T> values, int root) const {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto texts = gather(
        std::string(reinterpret_cast<const char*>(values.data()), values.size_bytes()), root);
    std::vector<std::vector<T>> all;
    for (const auto& text : texts) {
      const auto* first = reinterpret_cast<const T*>(text.data());
      all.emplace_back(first, first + text.size() / sizeof(T));
    }
    return all;
  }

  /// Runs `work` on every rank; if it throws anywhere, all ranks throw AgreedFailure with the
  /// message of the lowest failing rank. `work` must not call collectives after a local failure.
  void agree(const std::function<void()>& work) const;

  /// Ends all ranks of the job at once.
  [[noreturn]] void abort(int exit_code) const;

 private:
  Communicator(MPI_Comm comm, bool owned);
  friend class Allgather;
  /// Each rank's `bytes`, to all of them.
  MPI_Request start_allgather(const void* value, void* all, std::size_t bytes) const;
  /// One rank's text to another, which knows its size; in pieces.
  void send_text(const std::string& text, int to, int tag) const;
  std::string receive_text(std::uint64_t size, int from, int tag) const;
  /// Waits politely: the core is left to ranks that share it.
  void wait(MPI_Request& request, const char* call) const;

  MPI_Comm comm_ = MPI_COMM_NULL;
  bool owned_ = false;
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace atl::comm
