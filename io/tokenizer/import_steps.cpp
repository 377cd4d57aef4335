// tokenizer.json: what is done to text before and after byte-pair encoding.

#include <nlohmann/json.hpp>

#include "compute/error.hpp"
#include "io/json_shown.hpp"
#include "io/tokenizer/import.hpp"
#include "io/tokenizer/regex.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;

// GPT-2's, which ByteLevel has built in.
constexpr std::string_view byte_level_pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

const Json& member(const Json& json, const char* key) {
  require(json.is_object() && json.contains(key), "a step has no \"{}\"", key);
  return json[key];
}

std::string text_member(const Json& json, const char* key) {
  const Json& value = member(json, key);
  require(value.is_string(), "\"{}\" of a step is {}, must be a string", key, shown(value));
  return value.get<std::string>();
}

bool flag(const Json& json, const char* key, bool otherwise) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return otherwise;
  require(found->is_boolean(), "\"{}\" of a step is {}, must be true or false", key, shown(*found));
  return found->get<bool>();
}

int small_number(const Json& json, const char* key) {
  const Json& value = member(json, key);
  require(value.is_number_unsigned() && value.get<std::uint64_t>() < 1000,
          "\"{}\" of a step is {}, must be an integer below 1000", key, shown(value));
  return value.get<int>();
}

/// The text of a step's pattern that must be a plain text.
std::string plain_pattern(const Json& json, const std::string& type) {
  const Json& pattern = member(json, "pattern");
  require(pattern.is_object() && pattern.contains("String"),
          "{} with a regular expression is not supported", type);
  std::string text = text_member(pattern, "String");
  require(!text.empty(), "{} of an empty text is not supported", type);
  return text;
}

SplitBehavior behavior_of(const Json& json) {
  const std::string name = text_member(json, "behavior");
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_next;
  require(name == "Contiguous", "a Split that is {} is not supported", name);
  return SplitBehavior::contiguous;
}

CutStep split_step(std::string pattern, SplitBehavior behavior = SplitBehavior::isolated,
                   bool invert = false) {
  CutStep step;
  step.kind = CutStep::Kind::split;
  step.pattern = std::move(pattern);
  step.behavior = behavior;
  step.invert = invert;
  return step;
}

CutStep prepend_step(std::string text, bool only_first = false) {
  CutStep step;
  step.kind = CutStep::Kind::prepend;
  step.to = std::move(text);
  step.only_first = only_first;
  return step;
}

void add_split(const Json& json, TokenizerSpec& spec) {
  const Json& pattern = member(json, "pattern");
  const bool is_regex = pattern.is_object() && pattern.contains("Regex");
  const std::string text = text_member(pattern, is_regex ? "Regex" : "String");
  spec.cuts.push_back(
      split_step(is_regex ? to_pcre2(text, RegexDialect::oniguruma) : literal_pcre2(text),
                 behavior_of(json), flag(json, "invert", false)));
}

void add_byte_level(const Json& json, TokenizerSpec& spec) {
  if (flag(json, "add_prefix_space", true)) spec.cuts.push_back(prepend_step(" "));
  if (flag(json, "use_regex", true)) {
    spec.cuts.push_back(split_step(to_pcre2(byte_level_pattern, RegexDialect::oniguruma)));
  }
  spec.byte_level = true;
}

void add_metaspace(const Json& json, TokenizerSpec& spec) {
  const std::string replacement = text_member(json, "replacement");
  require(!replacement.empty(), "Metaspace without a replacement is not supported");
  CutStep replace;
  replace.kind = CutStep::Kind::replace;
  replace.from = " ";
  replace.to = replacement;
  spec.cuts.push_back(replace);
  const std::string scheme = json.contains("prepend_scheme") ? text_member(json, "prepend_scheme")
                             : flag(json, "add_prefix_space", true) ? "always"
                                                                    : "never";
  require(scheme == "always" || scheme == "first" || scheme == "never",
          "Metaspace with prepend_scheme {} is not supported", scheme);
  if (scheme != "never") spec.cuts.push_back(prepend_step(replacement, scheme == "first"));
  if (flag(json, "split", true)) {
    spec.cuts.push_back(split_step(literal_pcre2(replacement), SplitBehavior::merged_next));
  }
}

}  // namespace

void read_normalizer(const Json& json, TokenizerSpec& spec) {
  if (json.is_null()) return;
  const std::string type = text_member(json, "type");
  if (type == "Sequence") {
    for (const Json& inner : member(json, "normalizers")) read_normalizer(inner, spec);
  } else if (type == "NFC") {
    spec.normal.push_back({NormalStep::Kind::nfc, "", ""});
  } else if (type == "Prepend") {
    spec.normal.push_back({NormalStep::Kind::prepend, "", text_member(json, "prepend")});
  } else if (type == "Replace") {
    spec.normal.push_back({NormalStep::Kind::replace, plain_pattern(json, "normalizer Replace"),
                           text_member(json, "content")});
  } else {
    fail("normalizer {} is not supported", type);
  }
}

void read_pre_tokenizer(const Json& json, TokenizerSpec& spec) {
  if (json.is_null()) return;
  const std::string type = text_member(json, "type");
  if (type == "Sequence") {
    for (const Json& inner : member(json, "pretokenizers")) read_pre_tokenizer(inner, spec);
    return;
  }
  // Later steps would see the alphabet of bytes in place of the text.
  require(!spec.byte_level, "pre-tokenizer {} after ByteLevel is not supported", type);
  if (type == "Split") {
    add_split(json, spec);
  } else if (type == "ByteLevel") {
    add_byte_level(json, spec);
  } else if (type == "Digits") {
    const bool each = flag(json, "individual_digits", false);
    spec.cuts.push_back(
        split_step("\\p{N}", each ? SplitBehavior::isolated : SplitBehavior::contiguous));
  } else if (type == "Punctuation") {
    spec.cuts.push_back(split_step("[\\p{P}$+<=>^`|~]", json.contains("behavior")
                                                            ? behavior_of(json)
                                                            : SplitBehavior::isolated));
  } else if (type == "Metaspace") {
    add_metaspace(json, spec);
  } else {
    fail("pre-tokenizer {} is not supported", type);
  }
}

bool read_decoder(const Json& json, TokenizerSpec& spec) {
  require(!json.is_null(), "a tokenizer without a decoder is not supported");
  const std::string type = text_member(json, "type");
  DecodeStep step;
  if (type == "Sequence") {
    bool bytes = false;
    for (const Json& inner : member(json, "decoders")) bytes = read_decoder(inner, spec) || bytes;
    return bytes;
  }
  if (type == "ByteLevel") return true;
  require(!spec.byte_level, "decoder {} of a byte-level tokenizer is not supported", type);
  if (type == "ByteFallback") {
    step.kind = DecodeStep::Kind::byte_fallback;
  } else if (type == "Fuse") {
    step.kind = DecodeStep::Kind::fuse;
  } else if (type == "Replace") {
    step = {DecodeStep::Kind::replace, plain_pattern(json, "decoder Replace"),
            text_member(json, "content")};
  } else if (type == "Strip") {
    step.kind = DecodeStep::Kind::strip;
    step.from = text_member(json, "content");
    step.start = small_number(json, "start");
    step.stop = small_number(json, "stop");
  } else if (type == "Metaspace") {
    step.kind = DecodeStep::Kind::metaspace;
    step.from = text_member(json, "replacement");
    step.drop_first = json.contains("prepend_scheme")
                          ? text_member(json, "prepend_scheme") != "never"
                          : flag(json, "add_prefix_space", true);
  } else {
    fail("decoder {} is not supported", type);
  }
  spec.decode.push_back(std::move(step));
  return false;
}

}  // namespace atl::io
