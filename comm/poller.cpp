#include "comm/poller.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "comm/communicator.hpp"

namespace atl::comm {

namespace {
/// Tests `handles`; returns how many have completed since the last time, and which in `indices`. A
/// library may look for complete requests first and make progress after that (Open MPI does), so
/// that what arrives in the first call is seen in the second.
std::size_t test_some(std::span<MPI_Request> handles, std::vector<int>& indices) {
  indices.resize(handles.size());
  for (int attempt = 0; attempt < 2; ++attempt) {
    int count = 0;
    check(MPI_Testsome(to_int(handles.size(), "requests"), handles.data(), &count, indices.data(),
                       MPI_STATUSES_IGNORE),
          "MPI_Testsome");
    if (count == MPI_UNDEFINED) return 0;
    if (count > 0) return static_cast<std::size_t>(count);
  }
  return 0;
}
}  // namespace

void Awaited::rename(const std::vector<int>& ranks) {
  for (auto* peers : {&from, &to}) {
    for (int& peer : *peers) peer = ranks[static_cast<std::size_t>(peer)];
  }
}

std::string Awaited::text() const {
  std::string text;
  if (!from.empty()) text += fmt::format(" from ranks {}", fmt::join(from, " "));
  if (!to.empty()) {
    text += fmt::format("{} to ranks {}", from.empty() ? "" : " and", fmt::join(to, " "));
  }
  return text;
}

bool is_complete(MPI_Request request) {
  int complete = 0;
  check(MPI_Request_get_status(request, &complete, MPI_STATUS_IGNORE), "MPI_Request_get_status");
  return complete != 0;
}

MPI_Request* Requests::add() {
  ++open_;
  return &handles_.emplace_back(MPI_REQUEST_NULL);
}

bool Requests::test() {
  if (complete()) return true;
  thread_local std::vector<int> indices;
  open_ -= test_some(handles_, indices);
  return complete();
}

void Poller::reserve(std::size_t exchanges, std::size_t requests) {
  waiting_.reserve(exchanges);
  handles_.reserve(requests);
  indices_.reserve(requests);
}

void Poller::add(Requests& requests) {
  if (!requests.complete()) waiting_.push_back(&requests);
}

void Poller::test() {
  if (waiting_.empty()) return;
  handles_.clear();
  for (const Requests* r : waiting_) {
    handles_.insert(handles_.end(), r->handles_.begin(), r->handles_.end());
  }
  const std::size_t completed = test_some(handles_, indices_);
  if (completed == 0) return;
  const auto found = std::span(indices_).first(completed);
  std::sort(found.begin(), found.end());
  std::size_t first = 0;
  auto next = found.begin();
  for (Requests* r : waiting_) {
    const std::size_t end = first + r->handles_.size();
    for (; next != found.end() && static_cast<std::size_t>(*next) < end; ++next) {
      const auto at = static_cast<std::size_t>(*next);
      r->handles_[at - first] = handles_[at];
      --r->open_;
    }
    first = end;
  }
}

}  // namespace atl::comm
