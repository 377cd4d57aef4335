#include "io/tokenizer/regex.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "compute/error.hpp"

namespace atl::io {
namespace {

// White space of a whole prompt is one match, and the stack grows with its length.
constexpr std::size_t jit_stack_start = 32 << 10;
constexpr std::size_t jit_stack_limit = 64 << 20;

PCRE2_SPTR units(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data());
}

std::string reason_of(int code) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

struct FreeCompileContext {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

}  // namespace

struct RegexMemory::Impl {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(jit_stack_start, jit_stack_limit, nullptr);
};

RegexMemory::RegexMemory() : impl_(std::make_unique<Impl>()) {
  require(impl_->match != nullptr && impl_->context != nullptr, "no memory for a pattern's search");
  if (impl_->stack != nullptr) pcre2_jit_stack_assign(impl_->context, nullptr, impl_->stack);
}

RegexMemory::~RegexMemory() {
  pcre2_jit_stack_free(impl_->stack);
  pcre2_match_context_free(impl_->context);
  pcre2_match_data_free(impl_->match);
}

struct Regex::Code {
  pcre2_code* code = nullptr;
  bool has_jit = false;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(const std::string& pattern) {
  const std::unique_ptr<pcre2_compile_context, FreeCompileContext> context(
      pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);  // whatever the library was built with
  int error = 0;
  PCRE2_SIZE place = 0;
  auto code = std::make_shared<Code>();
  code->code =
      pcre2_compile(units(pattern), pattern.size(), PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C,
                    &error, &place, context.get());
  require(code->code != nullptr, "pattern {} is not understood, at byte {}: {}", pattern, place,
          reason_of(error));
  code->has_jit = pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE) == 0;
  code_ = std::move(code);
}

bool Regex::find(std::string_view text, std::size_t from, Match& match, RegexMemory& memory) const {
  RegexMemory::Impl& m = *memory.impl_;
  // The direct way into compiled patterns spares the checks of each call.
  const auto search = code_->has_jit ? pcre2_jit_match : pcre2_match;
  const int found =
      search(code_->code, units(text), text.size(), from, PCRE2_NO_UTF_CHECK, m.match, m.context);
  if (found == PCRE2_ERROR_NOMATCH) return false;
  require(found >= 0, "the tokenizer's pattern cannot be searched for in this text: {}",
          reason_of(found));
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(m.match);
  // A \K in an assertion could give such a match.
  require(ends[0] <= ends[1], "the tokenizer's pattern matches backwards in this text");
  match = {ends[0], ends[1]};
  return true;
}

}  // namespace atl::io
