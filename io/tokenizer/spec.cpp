// The compiled tokenizer as datasets, and back.

#include "io/tokenizer/spec.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "compute/error.hpp"
#include "io/utf8.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::ordered_json;

static_assert(std::endian::native == std::endian::little, "datasets are little endian");

constexpr const char* steps_path = "/tokenizer/steps";
constexpr const char* pieces_path = "/tokenizer/pieces";
constexpr const char* ends_path = "/tokenizer/piece_ends";
constexpr const char* merges_path = "/tokenizer/merges";
constexpr const char* template_path = "/tokenizer/chat_template";
constexpr int tokenizer_version = 1;

constexpr std::array normal_kinds = {"nfc", "prepend", "replace"};
constexpr std::array cut_kinds = {"split", "replace", "prepend"};
constexpr std::array decode_kinds = {"replace", "byte_fallback", "fuse", "strip", "metaspace"};
constexpr std::array behaviors = {"isolated", "removed", "merged_previous", "merged_next",
                                  "contiguous"};

template <class Enum, std::size_t N>
std::string name_of(Enum value, const std::array<const char*, N>& names) {
  return names.at(static_cast<std::size_t>(value));
}

template <class Enum, std::size_t N>
Enum value_of(const Json& json, const char* key, const std::array<const char*, N>& names) {
  const auto& name = json.at(key).get_ref<const std::string&>();
  const auto found = std::find(names.begin(), names.end(), name);
  require(found != names.end(), "its steps have a {} \"{}\", which this build does not know", key,
          name);
  return static_cast<Enum>(found - names.begin());
}

Json json_of(const NormalStep& step) {
  return {{"kind", name_of(step.kind, normal_kinds)}, {"from", step.from}, {"to", step.to}};
}

Json json_of(const CutStep& step) {
  return {{"kind", name_of(step.kind, cut_kinds)},
          {"pattern", step.pattern},
          {"behavior", name_of(step.behavior, behaviors)},
          {"invert", step.invert},
          {"only_first", step.only_first},
          {"from", step.from},
          {"to", step.to}};
}

Json json_of(const DecodeStep& step) {
  return {{"kind", name_of(step.kind, decode_kinds)},
          {"from", step.from},
          {"to", step.to},
          {"start", step.start},
          {"stop", step.stop},
          {"drop_first", step.drop_first}};
}

Json json_of(const AddedToken& token) {
  return {{"id", token.id},           {"content", token.content},
          {"special", token.special}, {"normalized", token.normalized},
          {"lstrip", token.lstrip},   {"rstrip", token.rstrip}};
}

Json json_of(const TokenizerSource& source) {
  return {{"file", source.file}, {"xxh3_64", fmt::format("{:016x}", source.hash)}};
}

template <class T>
Json list_of(const std::vector<T>& values) {
  Json list = Json::array();
  for (const T& value : values) list.push_back(json_of(value));
  return list;
}

void read(const Json& json, NormalStep& step) {
  step = {value_of<NormalStep::Kind>(json, "kind", normal_kinds), json.at("from"), json.at("to")};
}

void read(const Json& json, CutStep& step) {
  step.kind = value_of<CutStep::Kind>(json, "kind", cut_kinds);
  step.pattern = json.at("pattern");
  step.behavior = value_of<SplitBehavior>(json, "behavior", behaviors);
  step.invert = json.at("invert");
  step.only_first = json.at("only_first");
  step.from = json.at("from");
  step.to = json.at("to");
}

void read(const Json& json, DecodeStep& step) {
  step.kind = value_of<DecodeStep::Kind>(json, "kind", decode_kinds);
  step.from = json.at("from");
  step.to = json.at("to");
  step.start = json.at("start");
  step.stop = json.at("stop");
  step.drop_first = json.at("drop_first");
}

void read(const Json& json, AddedToken& token) {
  token = {json.at("id"),         json.at("content"), json.at("special"),
           json.at("normalized"), json.at("lstrip"),  json.at("rstrip")};
}

void read(const Json& json, TokenizerSource& source) {
  source.file = json.at("file");
  source.hash = std::stoull(json.at("xxh3_64").get<std::string>(), nullptr, 16);
}

template <class T>
void read_list(const Json& list, std::vector<T>& values) {
  for (const Json& json : list) read(json, values.emplace_back());
}

Json steps_json(const TokenizerSpec& spec) {
  Json json = {{"version", tokenizer_version}, {"sources", list_of(spec.sources)}};
  json["special_tokens"] = spec.special_tokens;
  if (!spec.unsupported.empty()) {
    json["unsupported"] = spec.unsupported;
    return json;
  }
  json["byte_level"] = spec.byte_level;
  json["byte_fallback"] = spec.byte_fallback;
  json["ignore_merges"] = spec.ignore_merges;
  json["merge_by_id"] = spec.merge_by_id;
  json["fuse_unknown"] = spec.fuse_unknown;
  json["unknown"] = spec.unknown;
  json["unreachable"] = spec.unreachable;
  json["normal"] = list_of(spec.normal);
  json["cuts"] = list_of(spec.cuts);
  json["decode"] = list_of(spec.decode);
  json["prefix"] = spec.prefix;
  json["suffix"] = spec.suffix;
  json["added"] = list_of(spec.added);
  return json;
}

void read_steps(const Json& json, TokenizerSpec& spec) {
  require(json.at("version") == tokenizer_version,
          "its tokenizer has version {}, this build reads {}; import the model again",
          json.at("version").dump(), tokenizer_version);
  read_list(json.at("sources"), spec.sources);
  spec.special_tokens = json.at("special_tokens").get<std::map<std::string, std::string>>();
  if (json.contains("unsupported")) {
    spec.unsupported = json.at("unsupported");
    return;
  }
  spec.byte_level = json.at("byte_level");
  spec.byte_fallback = json.at("byte_fallback");
  spec.ignore_merges = json.at("ignore_merges");
  spec.merge_by_id = json.at("merge_by_id");
  spec.fuse_unknown = json.at("fuse_unknown");
  spec.unknown = json.at("unknown");
  spec.unreachable = json.at("unreachable").get<std::vector<TokenId>>();
  read_list(json.at("normal"), spec.normal);
  read_list(json.at("cuts"), spec.cuts);
  read_list(json.at("decode"), spec.decode);
  spec.prefix = json.at("prefix").get<std::vector<TokenId>>();
  spec.suffix = json.at("suffix").get<std::vector<TokenId>>();
  read_list(json.at("added"), spec.added);
}

Attachment text_attachment(const char* path, const std::string& text) {
  return {path, 1, text};
}

Attachment number_attachment(const char* path, const std::vector<std::uint32_t>& numbers) {
  Attachment attachment = {path, sizeof(std::uint32_t), {}};
  attachment.bytes.assign(reinterpret_cast<const char*>(numbers.data()),
                          numbers.size() * sizeof(std::uint32_t));
  return attachment;
}

std::vector<std::uint32_t> numbers_of(const Attachment& attachment) {
  require(attachment.element_bytes == sizeof(std::uint32_t), "dataset {} has elements of {} bytes",
          attachment.path, attachment.element_bytes);
  std::vector<std::uint32_t> numbers(attachment.bytes.size() / sizeof(std::uint32_t));
  std::memcpy(numbers.data(), attachment.bytes.data(), numbers.size() * sizeof(std::uint32_t));
  return numbers;
}

}  // namespace

TokenId TokenizerSpec::num_ids() const {
  TokenId count = num_pieces();
  for (const AddedToken& token : added) count = std::max(count, token.id + 1);
  return count;
}

void TokenizerSpec::set_pieces(const std::vector<std::string>& texts) {
  piece_bytes.clear();
  piece_ends.clear();
  for (const std::string& text : texts) {
    piece_bytes += text;
    require(piece_bytes.size() <= std::numeric_limits<std::uint32_t>::max(),
            "its pieces have more than 4 GiB");
    piece_ends.push_back(static_cast<std::uint32_t>(piece_bytes.size()));
  }
}

void check_spec(const TokenizerSpec& spec) {
  if (!spec.unsupported.empty()) return;
  require(spec.num_ids() <= max_token_ids, "it has ids from {} on", max_token_ids);
  std::uint32_t last = 0;
  for (const std::uint32_t end : spec.piece_ends) {
    require(end >= last, "its pieces overlap");
    last = end;
  }
  require(last == spec.piece_bytes.size(), "its pieces do not end where their bytes do");
  require(spec.merges.size() % 3 == 0, "its merges are no triples");
  const auto pieces = static_cast<std::uint32_t>(spec.num_pieces());
  require(std::ranges::all_of(spec.merges, [&](std::uint32_t id) { return id < pieces; }),
          "its merges have ids without a piece");
  require(spec.unknown >= -1 && spec.unknown < spec.num_ids(), "its unknown token has no piece");
  require(std::ranges::is_sorted(spec.unreachable), "its unreachable pieces are not in order");
  for (const AddedToken& token : spec.added) {
    require(token.id >= 0, "an added token has the id {}", token.id);
    require(is_utf8(token.content), "an added token is not UTF-8");
  }
  for (const auto* ids : {&spec.prefix, &spec.suffix}) {
    for (const TokenId id : *ids) {
      require(id >= 0 && id < spec.num_ids(), "its template has the id {}, which it lacks", id);
    }
  }
  for (const NormalStep& step : spec.normal) {
    require(step.kind != NormalStep::Kind::replace || !step.from.empty(), "it replaces nothing");
  }
  for (const CutStep& step : spec.cuts) {
    require(step.kind != CutStep::Kind::replace || !step.from.empty(), "it replaces nothing");
  }
  for (const DecodeStep& step : spec.decode) {
    const bool has_text = step.kind == DecodeStep::Kind::byte_fallback ||
                          step.kind == DecodeStep::Kind::fuse || !step.from.empty();
    require(has_text, "it replaces nothing on the way back");
  }
}

std::vector<Attachment> to_attachments(const TokenizerSpec& spec) {
  std::vector<Attachment> all = {text_attachment(steps_path, steps_json(spec).dump())};
  if (!spec.chat_template.empty()) {
    all.push_back(text_attachment(template_path, spec.chat_template));
  }
  if (!spec.unsupported.empty()) return all;
  all.push_back(text_attachment(pieces_path, spec.piece_bytes));
  all.push_back(number_attachment(ends_path, spec.piece_ends));
  all.push_back(number_attachment(merges_path, spec.merges));
  // A dataset cannot be empty.
  std::erase_if(all, [](const Attachment& attachment) { return attachment.bytes.empty(); });
  return all;
}

TokenizerSpec from_attachments(const std::vector<Attachment>& attachments) {
  TokenizerSpec spec;
  bool has_steps = false;
  for (const Attachment& attachment : attachments) {
    if (attachment.path == steps_path) {
      has_steps = true;
      try {
        read_steps(Json::parse(attachment.bytes), spec);
      } catch (const Error&) {
        throw;
      } catch (const std::exception& error) {  // the parser's, or a number's that is none
        fail("{} is not what a tokenizer has there: {}", steps_path, error.what());
      }
    } else if (attachment.path == template_path) {
      spec.chat_template = attachment.bytes;
    } else if (attachment.path == pieces_path) {
      spec.piece_bytes = attachment.bytes;
    } else if (attachment.path == ends_path) {
      spec.piece_ends = numbers_of(attachment);
    } else if (attachment.path == merges_path) {
      spec.merges = numbers_of(attachment);
    }
  }
  require(has_steps, "there is no {}", steps_path);
  check_spec(spec);
  return spec;
}

}  // namespace atl::io
