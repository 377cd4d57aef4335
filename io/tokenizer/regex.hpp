#pragma once
// Regular expressions of tokenizers, on PCRE2.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace atl::io {

/// What a thread needs beside a pattern to look for it.
class RegexMemory {
 public:
  RegexMemory();
  ~RegexMemory();
  RegexMemory(const RegexMemory&) = delete;
  RegexMemory& operator=(const RegexMemory&) = delete;

 private:
  friend class Regex;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A compiled pattern; any number of threads may use it, each with memory of its own.
class Regex {
 public:
  /// `pattern` is PCRE2's, with UTF and Unicode properties. Throws Error when it is not valid.
  explicit Regex(const std::string& pattern);

  struct Match {
    std::size_t begin = 0;
    std::size_t end = 0;
  };
  /// The first match from byte `from` on in `text`, which must be UTF-8; what stands before `from`
  /// is seen by assertions. False without a match. Throws Error when the search takes too much.
  bool find(std::string_view text, std::size_t from, Match& match, RegexMemory& memory) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

/// Where a pattern comes from: engines read some signs differently.
enum class RegexDialect {
  oniguruma,  ///< tokenizer.json
  rust        ///< tiktoken and tekken
};

/// The pattern as PCRE2 has to be given it to mean the same. Throws Error naming the first sign
/// whose meaning is not known to be the same.
std::string to_pcre2(std::string_view pattern, RegexDialect dialect);

/// A pattern of PCRE2 for exactly this text.
std::string literal_pcre2(std::string_view text);

}  // namespace atl::io
