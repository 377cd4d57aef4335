#include "io/json_depth.hpp"

#include "compute/error.hpp"

namespace atl::io {

namespace {

constexpr int max_depth = 64;

}  // namespace

void require_shallow_json(std::string_view text, std::string_view what) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;  // the escaped character ends no string
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      require(++depth <= max_depth, "{}: JSON nested more than {} deep", what, max_depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
}

}  // namespace atl::io
