#pragma once
// How Atoll fails: libraries throw Error, only main.cpp turns it into one message and an exit code.

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

// The namespace is atl, because atoll() is a function of the C library.
namespace atl {

/// A failure the user should read: problem (why) what to do. Exit code 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  virtual int exit_code() const { return 1; }
};

/// The command line or configuration is wrong. Exit code 2.
class UsageError : public Error {
 public:
  using Error::Error;
  int exit_code() const override { return 2; }
};

/// Throws Error with a formatted message.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

/// Throws Error with a formatted message unless `condition` holds.
template <class... Args>
void require(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) throw Error(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace atl
