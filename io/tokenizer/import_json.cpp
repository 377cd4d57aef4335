// tokenizer.json: vocabulary, merges, added tokens and template. Its steps are in import_steps.cpp.

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "compute/error.hpp"
#include "io/json_shown.hpp"
#include "io/json_text.hpp"
#include "io/tokenizer/byte_alphabet.hpp"
#include "io/tokenizer/import.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;
using Ids = std::unordered_map<std::string, TokenId>;

/// A member that is there and not null.
const Json* given(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found == json.end() || found->is_null() ? nullptr : &*found;
}

bool flag(const Json& json, const char* key) {
  const Json* value = given(json, key);
  if (value == nullptr) return false;
  require(value->is_boolean(), "\"{}\" is {}, must be true or false", key, shown(*value));
  return value->get<bool>();
}

const Json& member(const Json& json, const char* key) {
  require(json.is_object() && json.contains(key), "it has no \"{}\"", key);
  return json[key];
}

TokenId id_of(const Json& value) {
  require(value.is_number_unsigned() && value.get<std::uint64_t>() < max_token_ids,
          "an id is {}, must be an integer from 0 to {}", shown(value), max_token_ids - 1);
  return value.get<TokenId>();
}

std::string text_of(const Json& value, const char* what) {
  require(value.is_string(), "{} is {}, must be a string", what, shown(value));
  return value.get<std::string>();
}

void require_no_other_model(const Json& model) {
  const std::string type = model.value("type", Json("BPE")).dump();
  require(type == "\"BPE\"", "its model is {}, and only BPE is supported", type);
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* value = given(model, key);
    require(value == nullptr || *value == "" || *value == 0, "its model has {} {}, not supported",
            key, value == nullptr ? "" : shown(*value));
  }
}

Ids read_vocabulary(const Json& model, TokenizerSpec& spec) {
  const Json& vocab = member(model, "vocab");
  require(vocab.is_object(), "its \"vocab\" is {}, must be an object", shown(vocab));
  Ids ids;
  ids.reserve(vocab.size());
  std::vector<std::string> texts;
  for (const auto& [text, value] : vocab.items()) {
    const TokenId id = id_of(value);
    const auto place = static_cast<std::size_t>(id);
    if (place >= texts.size()) texts.resize(place + 1);
    require(texts[place].empty(), "its vocabulary has the id {} twice", id);
    ids.emplace(text, id);
    texts[place] = text;
    if (!spec.byte_level) continue;
    if (auto bytes = bytes_of_alphabet(text)) {
      texts[place] = std::move(*bytes);
    } else {
      spec.unreachable.push_back(id);
    }
  }
  std::ranges::sort(spec.unreachable);
  spec.set_pieces(texts);
  return ids;
}

/// "a b", or in later versions ["a", "b"], which may have spaces in them.
std::pair<std::string, std::string> halves_of(const Json& merge) {
  if (merge.is_array() && merge.size() == 2) {
    return {text_of(merge[0], "a merge"), text_of(merge[1], "a merge")};
  }
  const std::string text = text_of(merge, "a merge");
  const std::size_t space = text.find(' ');
  require(space != std::string::npos && text.find(' ', space + 1) == std::string::npos,
          "the merge {} is no pair", shown(merge));
  return {text.substr(0, space), text.substr(space + 1)};
}

void read_merges(const Json& model, const Ids& ids, TokenizerSpec& spec) {
  const Json& merges = member(model, "merges");
  require(merges.is_array(), "its \"merges\" are {}, must be a list", shown(merges));
  spec.merges.reserve(3 * merges.size());
  const auto push = [&](const std::string& text) {
    const auto found = ids.find(text);
    require(found != ids.end(), "a merge has {}, which is not in the vocabulary",
            shown(Json(text)));
    spec.merges.push_back(static_cast<std::uint32_t>(found->second));
  };
  for (const Json& merge : merges) {
    const auto [left, right] = halves_of(merge);
    push(left);
    push(right);
    push(left + right);
  }
}

Ids read_model(const Json& model, TokenizerSpec& spec) {
  require(model.is_object(), "its \"model\" is {}, must be an object", shown(model));
  require_no_other_model(model);
  spec.byte_fallback = flag(model, "byte_fallback");
  spec.ignore_merges = flag(model, "ignore_merges");
  spec.fuse_unknown = flag(model, "fuse_unk");
  require(!spec.byte_fallback || !spec.byte_level,
          "byte_fallback together with a ByteLevel pre-tokenizer is not supported");
  Ids ids = read_vocabulary(model, spec);
  read_merges(model, ids, spec);
  if (const Json* unknown = given(model, "unk_token")) {
    const auto found = ids.find(text_of(*unknown, "\"unk_token\""));
    require(found != ids.end(), "its unk_token {} is not in the vocabulary", shown(*unknown));
    spec.unknown = found->second;
  }
  return ids;
}

/// An added token has the id that Hugging Face's library gives it, whatever the file says: that of
/// the vocabulary, or the next free one.
void read_added(const Json& json, Ids ids, TokenizerSpec& spec) {
  auto next = static_cast<TokenId>(ids.size());
  const Json* list = given(json, "added_tokens");
  if (list == nullptr) return;
  require(list->is_array(), "its \"added_tokens\" are {}, must be a list", shown(*list));
  for (const Json& item : *list) {
    AddedToken token;
    token.content = text_of(member(item, "content"), "an added token's content");
    if (token.content.empty()) continue;
    token.id = ids.emplace(token.content, next).first->second;
    next = std::max(next, token.id + 1);
    require(!flag(item, "single_word"), "added token {} has single_word, not supported",
            shown(item["content"]));
    token.special = flag(item, "special");
    token.normalized = flag(item, "normalized");
    token.lstrip = flag(item, "lstrip");
    token.rstrip = flag(item, "rstrip");
    spec.added.push_back(std::move(token));
  }
}

/// Ids of a special token of a template, by its name there.
void append_special(const Json& post_processor, const Json& name, std::vector<TokenId>& ids) {
  const std::string key = text_of(name, "a special token of the template");
  const Json& ids_of_token =
      member(member(member(post_processor, "special_tokens"), key.c_str()), "ids");
  for (const Json& id : ids_of_token) ids.push_back(id_of(id));
}

void read_template(const Json& post_processor, TokenizerSpec& spec) {
  bool before = true;
  for (const Json& item : member(post_processor, "single")) {
    if (const Json* special = given(item, "SpecialToken")) {
      append_special(post_processor, member(*special, "id"), before ? spec.prefix : spec.suffix);
      continue;
    }
    require(before && given(item, "Sequence") != nullptr,
            "its template is not special tokens around one text");
    before = false;
  }
  require(!before, "its template has no text");
}

void read_post_processor(const Json& json, TokenizerSpec& spec) {
  if (json.is_null()) return;
  const std::string type = text_of(member(json, "type"), "a post-processor's type");
  if (type == "ByteLevel") return;  // is about offsets
  if (type == "TemplateProcessing") {
    require(spec.prefix.empty() && spec.suffix.empty(), "two templates are not supported");
    return read_template(json, spec);
  }
  require(type == "Sequence", "post-processor {} is not supported", type);
  for (const Json& inner : member(json, "processors")) read_post_processor(inner, spec);
}

}  // namespace

TokenizerSpec tokenizer_from_json(std::string_view text) {
  const Json json = parse_json_object(text, "cannot be read");
  TokenizerSpec spec;
  const auto step = [&json](const char* key) {
    const Json* value = given(json, key);
    return value == nullptr ? Json() : *value;
  };
  read_normalizer(step("normalizer"), spec);
  read_pre_tokenizer(step("pre_tokenizer"), spec);  // says whether the vocabulary is of bytes
  Ids ids = read_model(member(json, "model"), spec);
  require(read_decoder(step("decoder"), spec) == spec.byte_level,
          "a pre-tokenizer or a decoder of bytes without the other is not supported");
  read_added(json, std::move(ids), spec);
  read_post_processor(step("post_processor"), spec);
  check_spec(spec);
  return spec;
}

}  // namespace atl::io
