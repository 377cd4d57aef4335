#pragma once
// MPI requests that belong together, and many of them tested with one call.

#include <mpi.h>

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace atl::comm {

/// Whether MPI is done with it. The request stays as it is, to be tested.
bool is_complete(MPI_Request request);

/// The requests of one exchange, and how many of them are still under way. Never frees an active
/// request: those dropped while active (only when an error unwinds this rank) are left to the MPI
/// library. Allocates for more requests than there have been at once before, or reserve().
class Requests {
 public:
  Requests() = default;
  /// What was moved from has no requests.
  Requests(Requests&& other) noexcept
      : handles_(std::move(other.handles_)), open_(std::exchange(other.open_, 0)) {}
  Requests& operator=(Requests&& other) noexcept {
    handles_ = std::move(other.handles_);
    open_ = std::exchange(other.open_, 0);
    return *this;
  }

  void reserve(std::size_t count) { handles_.reserve(count); }
  /// Forgets the handles; those of persistent requests must have been freed.
  void clear() {
    handles_.clear();
    open_ = 0;
  }
  /// A place for one more request, to be posted into it. Valid until the next add().
  MPI_Request* add();
  /// For places that are used again and again: none of them, or all of them, are under way.
  void none_posted() { open_ = 0; }
  void all_posted() { open_ = handles_.size(); }
  /// In the order of add(); null or inactive where complete.
  std::vector<MPI_Request>& handles() { return handles_; }
  const std::vector<MPI_Request>& handles() const { return handles_; }

  /// True once all are complete, as the last test() of them or of a Poller found it. No call of
  /// MPI.
  bool complete() const { return open_ == 0; }
  /// Drives MPI's progress; returns complete().
  bool test();

 private:
  friend class Poller;
  std::vector<MPI_Request> handles_;
  std::size_t open_ = 0;
};

/// Ranks with which messages of an exchange are still under way; empty where a transport cannot
/// tell. A large message is awaited until its receiver takes it.
struct Awaited {
  std::vector<int> from, to;
  bool empty() const { return from.empty() && to.empty(); }
  /// " from ranks 1 2 and to ranks 3", or a part of it.
  std::string text() const;
  /// Members of a group become what `ranks` [members] says they are.
  void rename(const std::vector<int>& ranks);
};

/// Tests the requests of many exchanges at once. A test drives MPI's progress, which over TCP takes
/// system calls: with one test per exchange a rank that polls beside its arithmetic spends the time
/// of that arithmetic.
class Poller {
 public:
  void reserve(std::size_t exchanges, std::size_t requests);
  void clear() { waiting_.clear(); }
  /// `requests` stay where they are until test() has returned.
  void add(Requests& requests);
  /// Drives MPI's progress; afterwards complete() of what was added is up to date.
  void test();

 private:
  std::vector<Requests*> waiting_;
  std::vector<MPI_Request> handles_;  // of all that wait, one after another
  std::vector<int> indices_;
};

}  // namespace atl::comm
