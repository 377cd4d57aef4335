// Patterns as other engines read them, written for PCRE2.

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "compute/error.hpp"
#include "io/tokenizer/regex.hpp"
#include "io/utf8.hpp"

namespace atl::io {
namespace {

constexpr std::string_view alphanumeric =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
constexpr std::string_view hex_digits = "0123456789abcdefABCDEF";

constexpr std::size_t max_pattern_bytes = 1 << 16;
constexpr int max_class_depth = 16;

bool is_punctuation(char c) {
  return static_cast<unsigned char>(c) < 0x80 && alphanumeric.find(c) == std::string_view::npos;
}

std::string escaped(std::string_view character) {
  const bool special = character.size() == 1 && is_punctuation(character[0]);
  return (special ? "\\" : "") + std::string(character);
}

std::string lower(std::string_view name) {
  std::string text;
  for (const char c : name) {
    if (c == '_' || c == ' ' || c == '-') continue;
    text += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return text;
}

/// The general category that `name` is, in PCRE2's words; nothing for others.
std::optional<std::string> category_of(std::string_view name) {
  static constexpr std::array<std::string_view, 37> short_names = {
      "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd", "Nl",
      "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk",
      "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Cn", "Co", "Cs"};
  static constexpr std::array<std::array<std::string_view, 2>, 13> long_names = {
      {{"letter", "L"},
       {"mark", "M"},
       {"number", "N"},
       {"punctuation", "P"},
       {"symbol", "S"},
       {"separator", "Z"},
       {"other", "C"},
       {"uppercaseletter", "Lu"},
       {"lowercaseletter", "Ll"},
       {"titlecaseletter", "Lt"},
       {"modifierletter", "Lm"},
       {"otherletter", "Lo"},
       {"decimalnumber", "Nd"}}};
  const std::string wanted = lower(name);
  for (const std::string_view category : short_names) {
    if (lower(category) == wanted) return std::string(category);
  }
  for (const auto& [full, category] : long_names) {
    if (full == wanted) return std::string(category);
  }
  return std::nullopt;
}

/// One escape of a pattern, translated.
struct Escape {
  std::string text;
  bool one_character = false;  ///< may begin or end a range of a class
};

class Translator {
 public:
  Translator(std::string_view pattern, RegexDialect dialect)
      : pattern_(pattern), is_onig_(dialect == RegexDialect::oniguruma) {
    require(is_utf8(pattern), "a pattern is not UTF-8");
    require(pattern.size() <= max_pattern_bytes, "a pattern has {} bytes", pattern.size());
  }

  std::string run() {
    while (!at_end()) element();
    require(groups_.empty(), "pattern {}: a bracket is not closed", pattern_);
    return std::move(out_);
  }

 private:
  bool at_end() const { return at_ >= pattern_.size(); }
  bool next_is(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  bool take(std::string_view text) {
    if (!next_is(text)) return false;
    at_ += text.size();
    return true;
  }
  std::string_view take_character() {
    const auto length = static_cast<std::size_t>(utf8_sequence(pattern_.substr(at_, 4)));
    at_ += length;
    return pattern_.substr(at_ - length, length);
  }
  [[noreturn]] void refuse(std::string_view what) const {
    fail("pattern {}: {} (before byte {}) is not supported", pattern_, what, at_);
  }
  void atom(const std::string& text) {
    atom_ = out_.size();
    out_ += text;
  }

  void element();
  void group();
  void quantifier(char sign);
  void interval();
  bool read_interval(std::string& text, bool& exact);
  Escape escape(bool in_class);
  std::string code_point();
  std::string property(bool negated);
  std::string char_class();
  std::string operand();
  void class_item(std::string& items);

  std::string_view pattern_;
  bool is_onig_;
  std::size_t at_ = 0;
  std::string out_;
  std::size_t atom_ = std::string::npos;  // where in out_ that begins which a quantifier repeats
  int class_depth_ = 0;
  std::vector<std::size_t> groups_;  // where in out_ the open ones begin
};

void Translator::element() {
  const std::string_view c = take_character();
  switch (c[0]) {
    case '\\':
      return atom(escape(/*in_class=*/false).text);
    case '[':
      return atom(char_class());
    case '(':
      return group();
    case ')':
      if (groups_.empty()) refuse("a bracket that was not opened");
      atom_ = groups_.back();
      groups_.pop_back();
      out_ += ')';
      return;
    case '|':
      atom_ = std::string::npos;
      out_ += '|';
      return;
    case '*':
    case '+':
    case '?':
      return quantifier(c[0]);
    case '{':
      return interval();
    case '^':
      out_ += is_onig_ ? "(?m:^)" : "\\A";  // Ruby's syntax: of each line
      return;
    case '$':
      out_ += is_onig_ ? "(?m:$)" : "\\z";
      return;
    case '.':
      return atom(".");
    default:
      return atom(escaped(c));
  }
}

void Translator::group() {
  groups_.push_back(out_.size());
  atom_ = std::string::npos;
  if (!take("?")) {
    out_ += "(?:";  // nothing asks what a group matched
    return;
  }
  for (const std::string_view kind : {":", "=", "!", ">", "<=", "<!"}) {
    if (!take(kind)) continue;
    out_ += "(?";
    out_ += kind;
    return;
  }
  std::string flags;
  while (!at_end() && pattern_[at_] != ':' && pattern_[at_] != ')') {
    const char flag = pattern_[at_++];
    const bool dot_all = flag == (is_onig_ ? 'm' : 's');
    if (flag != 'i' && flag != '-' && !dot_all) refuse("a group of this kind");
    flags += dot_all ? 's' : flag;
  }
  if (at_end()) refuse("a group of this kind");
  const bool alone = pattern_[at_++] == ')';
  out_ += "(?" + flags + (alone ? ')' : ':');
  if (alone) groups_.pop_back();
}

void Translator::quantifier(char sign) {
  if (atom_ == std::string::npos) refuse("a sign of repetition with nothing before it");
  out_ += sign;
  if (take("?"))
    out_ += '?';
  else if (take("+"))
    out_ += '+';
}

/// Reads "3}", "3,}", "3,5}" and Ruby's ",5}". False, and nothing read, for anything else.
bool Translator::read_interval(std::string& text, bool& exact) {
  const std::size_t end = pattern_.find('}', at_);
  if (end == std::string_view::npos) return false;
  const std::string_view inside = pattern_.substr(at_, end - at_);
  if (inside.find_first_not_of("0123456789,") != std::string_view::npos) return false;
  const std::size_t comma = inside.find(',');
  exact = comma == std::string_view::npos;
  if (inside.empty() || inside == "," || inside.find(',', comma + 1) < inside.size()) return false;
  if (comma == 0 && !is_onig_) return false;
  text = fmt::format("{{{}{}}}", comma == 0 ? "0" : "", inside);
  at_ = end + 1;
  return true;
}

void Translator::interval() {
  std::string text;
  bool exact = false;
  if (!read_interval(text, exact)) return atom("\\{");
  if (atom_ == std::string::npos) refuse("a sign of repetition with nothing before it");
  out_ += text;
  // Ruby's syntax has no possessive interval and no lazy {n}: the sign repeats what stands there.
  const bool repeats = is_onig_ && (next_is("+") || (exact && next_is("?")));
  if (repeats) {
    out_.insert(atom_, "(?:");
    out_ += ')';
  }
  if (take("?"))
    out_ += '?';
  else if (take("+"))
    out_ += '+';
}

std::string Translator::code_point() {
  std::string_view digits;
  if (take("{")) {
    const std::size_t end = pattern_.find('}', at_);
    if (end == std::string_view::npos) refuse("an escape without its end");
    digits = pattern_.substr(at_, end - at_);
    at_ = end + 1;
  } else {
    const std::size_t count = pattern_[at_ - 1] == 'u' ? 4 : 2;
    digits = pattern_.substr(at_, count);
    if (digits.size() < count) refuse("an escape without its end");
    at_ += count;
    // Oniguruma takes \xE3 as one byte of a sequence.
    if (count == 2 && digits[0] > '7') refuse("a byte that is no character");
  }
  const bool is_hex = !digits.empty() && digits.size() <= 6 &&
                      digits.find_first_not_of(hex_digits) == std::string_view::npos;
  if (!is_hex) refuse("an escape of this kind");
  return fmt::format("\\x{{{}}}", digits);
}

std::string Translator::property(bool negated) {
  std::string_view name;
  if (take("{")) {
    const std::size_t end = pattern_.find('}', at_);
    if (end == std::string_view::npos) refuse("an escape without its end");
    name = pattern_.substr(at_, end - at_);
    at_ = end + 1;
  } else {
    if (is_onig_ || at_end()) refuse("\\p without braces");
    name = take_character();
  }
  if (name.starts_with('^')) {
    negated = !negated;
    name.remove_prefix(1);
  }
  const std::string start = negated ? "\\P{" : "\\p{";
  if (const auto category = category_of(name)) return start + *category + '}';
  const bool is_name = !name.empty() && name.find_first_not_of(alphanumeric) == name.npos;
  if (!is_name && name.find_first_of("_ -") == name.npos) refuse("a property of this kind");
  for (const char c : name) {
    if (is_punctuation(c) && c != '_' && c != ' ' && c != '-') refuse("a property of this kind");
  }
  // PCRE2's \p{Han} is of script extensions, others' of scripts.
  return fmt::format("{}sc:{}}}", start, name);
}

Escape Translator::escape(bool in_class) {
  if (at_end()) refuse("a backslash at the end");
  const std::string_view c = take_character();
  if (c.size() > 1 || is_punctuation(c[0])) return {escaped(c), true};
  switch (c[0]) {
    case 'p':
    case 'P':
      return {property(c[0] == 'P')};
    case 's':
      return {"\\p{White_Space}"};  // PCRE2's \s has U+180E too
    case 'S':
      return {"\\P{White_Space}"};
    case 'd':
      return {"\\p{Nd}"};
    case 'D':
      return {"\\P{Nd}"};
    case 'n':
    case 'r':
    case 't':
    case 'f':
    case 'a':
    case 'e':
      return {"\\" + std::string(c), true};
    case 'v':
      return {"\\x{b}", true};  // in PCRE2 any vertical space
    case 'x':
    case 'u':
      return {code_point(), true};
    case 'A':
    case 'z':
      if (!in_class) return {"\\" + std::string(c)};
      break;
    default:
      break;
  }
  refuse(fmt::format("\\{}", c));
}

void Translator::class_item(std::string& items) {
  const auto one = [&]() -> Escape {
    if (take("\\")) return escape(/*in_class=*/true);
    return {escaped(take_character()), true};
  };
  const Escape first = one();
  items += first.text;
  const bool range = next_is("-") && !next_is("-]") && !next_is("-[") && !next_is("-&&");
  if (!first.one_character || !range) return;
  ++at_;
  const Escape last = one();
  if (!last.one_character) refuse("a range of this kind");
  items += '-' + last.text;
}

/// What stands in a class until "&&" or its end: a class of PCRE2's.
std::string Translator::operand() {
  std::string items;
  std::string nested;  // a class as a whole
  int num_nested = 0;
  while (!at_end() && !next_is("]") && !next_is("&&")) {
    if (next_is("[:")) refuse("a POSIX bracket");
    if (take("[")) {
      nested = char_class();
      ++num_nested;
      continue;
    }
    class_item(items);
  }
  if (num_nested == 0 && !items.empty()) return '[' + items + ']';
  if (num_nested != 1 || !items.empty()) refuse("a class of classes");
  return nested;
}

/// After '[', until its end.
std::string Translator::char_class() {
  if (++class_depth_ > max_class_depth) refuse("a class of classes of classes");
  const bool negated = take("^");
  if (next_is("]")) refuse("a class that begins with its end");
  std::vector<std::string> operands = {operand()};
  while (take("&&")) operands.push_back(operand());
  if (!take("]")) refuse("a class without its end");
  --class_depth_;
  if (operands.size() == 1) {
    std::string& only = operands[0];
    if (!negated) return std::move(only);
    if (!only.starts_with('[') || only.starts_with("[^")) refuse("a class of classes");
    return only.insert(1, "^");
  }
  if (negated) refuse("the complement of an intersection");
  std::string text = "(?:";
  for (std::size_t i = 1; i < operands.size(); ++i) text += "(?=" + operands[i] + ')';
  return text + operands[0] + ')';
}

}  // namespace

std::string to_pcre2(std::string_view pattern, RegexDialect dialect) {
  return Translator(pattern, dialect).run();
}

std::string literal_pcre2(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    pattern += c == '\0' ? std::string("\\x{0}") : escaped(std::string_view(&c, 1));
  }
  return pattern;
}

}  // namespace atl::io
