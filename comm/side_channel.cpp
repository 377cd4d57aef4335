#include "comm/side_channel.hpp"

#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

namespace atl::comm {

namespace {

/// Processes in one network namespace of one machine reach each other by loopback. Host names do
/// not tell: they repeat, and namespaces share a machine.
std::uint64_t network_id() {
  struct stat status {};
  std::uint64_t id = stat("/proc/self/ns/net", &status) == 0 ? status.st_ino : 0;
  std::ifstream boot("/proc/sys/kernel/random/boot_id");
  for (char c = 0; boot.get(c);) id = id * 31 + static_cast<unsigned char>(c);
  return id;
}

sockaddr_in ip_address(std::uint32_t ip, std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = ip;
  address.sin_port = port;
  return address;
}

}  // namespace

SideChannel::SideChannel() : network_(network_id()) {
  socket_ = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (socket_ < 0) return;
  const sockaddr_in any = ip_address(htonl(INADDR_ANY), 0);
  if (bind(socket_, reinterpret_cast<const sockaddr*>(&any), sizeof any) != 0) {
    close(socket_);
    socket_ = -1;
  }
}

SideChannel::~SideChannel() {
  if (socket_ >= 0) close(socket_);
}

RankAddress SideChannel::address() const {
  RankAddress own;
  own.network = network_;
  own.pid = static_cast<std::int32_t>(getpid());
  gethostname(own.host.data(), own.host.size() - 1);
  sockaddr_in bound{};
  socklen_t length = sizeof bound;
  if (socket_ < 0 || getsockname(socket_, reinterpret_cast<sockaddr*>(&bound), &length) != 0) {
    return own;
  }
  own.port = bound.sin_port;
  ifaddrs* interfaces = nullptr;
  if (getifaddrs(&interfaces) != 0) return own;
  std::size_t found = 0;
  for (const ifaddrs* i = interfaces; i != nullptr && found < own.ips.size(); i = i->ifa_next) {
    if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != AF_INET) continue;
    if ((i->ifa_flags & IFF_UP) == 0 || (i->ifa_flags & IFF_LOOPBACK) != 0) continue;
    sockaddr_in ip{};
    std::memcpy(&ip, i->ifa_addr, sizeof ip);
    own.ips[found++] = ip.sin_addr.s_addr;
  }
  freeifaddrs(interfaces);
  return own;
}

void SideChannel::connect(int rank, std::vector<RankAddress> all, std::uint64_t key) {
  rank_ = rank;
  key_ = key;
  heard_.assign(all.size(), ip_address(0, 0));
  addresses_ = std::move(all);
  connected_.store(true, std::memory_order_release);
}

std::string SideChannel::name_of(int rank) const {
  const RankAddress& address = addresses_[static_cast<std::size_t>(rank)];
  return fmt::format("rank {} ({}, process {})", rank, address.host.data(), address.pid);
}

void SideChannel::send(int to, Kind kind, const RankState& state) const {
  if (!connected() || socket_ < 0) return;
  Message message;
  message.key = key_;
  message.kind = kind;
  message.from = rank_;
  message.to = to;
  message.state = state;
  const auto send_to = [&](const sockaddr_in& address) {
    sendto(socket_, &message, sizeof message, MSG_NOSIGNAL,
           reinterpret_cast<const sockaddr*>(&address), sizeof address);
  };
  const RankAddress& peer = addresses_[static_cast<std::size_t>(to)];
  const sockaddr_in& heard = heard_[static_cast<std::size_t>(to)];
  if (peer.network == network_) {
    send_to(ip_address(htonl(INADDR_LOOPBACK), peer.port));
  } else if (heard.sin_port != 0) {
    send_to(heard);
  } else {  // any of its interfaces may be the one that leads there; the wrong ones are harmless
    for (const std::uint32_t ip : peer.ips) {
      if (ip != 0) send_to(ip_address(ip, peer.port));
    }
  }
}

void SideChannel::send_to_all(Kind kind, const RankState& state) const {
  for (int to = 0; connected() && to < size(); ++to) {
    if (to != rank_) send(to, kind, state);
  }
}

bool SideChannel::receive(Message& message, int timeout_ms) {
  // Datagrams that come before this rank knows the key stay in the socket, for later.
  pollfd waiting{connected() ? socket_ : -1, POLLIN, 0};  // -1: this just sleeps
  if (poll(&waiting, 1, timeout_ms) <= 0) return false;
  sockaddr_in from{};
  socklen_t length = sizeof from;
  const ssize_t got =
      recvfrom(socket_, &message, sizeof message, 0, reinterpret_cast<sockaddr*>(&from), &length);
  if (got != static_cast<ssize_t>(sizeof message) || message.key != key_) return false;
  if (message.to != rank_ || message.from < 0 || message.from >= size()) return false;
  heard_[static_cast<std::size_t>(message.from)] = from;
  return true;
}

}  // namespace atl::comm
