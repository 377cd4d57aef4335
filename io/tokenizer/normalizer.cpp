#include "io/tokenizer/normalizer.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "compute/error.hpp"

namespace atl::io {
namespace {

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
}

std::string nfc(const std::string& text) {
  if (is_ascii(text)) return text;
  utf8proc_uint8_t* composed = nullptr;
  const utf8proc_ssize_t length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &composed,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(composed, std::free);
  require(length >= 0, "the text cannot be normalised: {}", utf8proc_errmsg(length));
  return {reinterpret_cast<const char*>(composed), static_cast<std::size_t>(length)};
}

bool is_space(std::string_view character) {
  utf8proc_int32_t code = 0;
  utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(character.data()),
                   static_cast<utf8proc_ssize_t>(character.size()), &code);
  if ((code >= 0x9 && code <= 0xd) || code == 0x85) return true;
  const utf8proc_category_t category = utf8proc_category(code);
  return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL ||
         category == UTF8PROC_CATEGORY_ZP;
}

bool is_tail(char c) {
  return (c & 0xc0) == 0x80;
}

}  // namespace

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (text.find(from) == std::string::npos) return;
  std::string result;
  std::size_t last = 0;
  for (std::size_t at = 0; (at = text.find(from, last)) != std::string::npos;) {
    result.append(text, last, at - last);
    result += to;
    last = at + from.size();
  }
  result.append(text, last);
  text = std::move(result);
}

std::string normalized(std::string_view text, const std::vector<NormalStep>& steps) {
  std::string result(text);
  for (const NormalStep& step : steps) {
    switch (step.kind) {
      case NormalStep::Kind::nfc:
        result = nfc(result);
        break;
      case NormalStep::Kind::prepend:
        if (!result.empty()) result.insert(0, step.to);
        break;
      case NormalStep::Kind::replace:
        replace_all(result, step.from, step.to);
        break;
    }
  }
  return result;
}

std::size_t space_at_start(std::string_view text) {
  if (text.empty()) return 0;
  std::size_t length = 1;
  while (length < text.size() && is_tail(text[length])) ++length;
  return is_space(text.substr(0, length)) ? length : 0;
}

std::size_t space_at_end(std::string_view text) {
  if (text.empty()) return 0;
  std::size_t begin = text.size() - 1;
  while (begin > 0 && is_tail(text[begin])) --begin;
  return is_space(text.substr(begin)) ? text.size() - begin : 0;
}

}  // namespace atl::io
