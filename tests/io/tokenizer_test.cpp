// Tokenizers against what Hugging Face's library recorded (tests/data/tokenizers/make.py), and what
// the other kinds of file must give.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <thread>

#include "compute/error.hpp"
#include "io/folder_tokenizer.hpp"
#include "io/model_text.hpp"
#include "io/tokenizer/encoder.hpp"
#include "io/tokenizer/import.hpp"
#include "io/utf8.hpp"
#include "tests/temporary_folder.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<TokenId>;

std::string data_file(const std::string& name) {
  std::ifstream file(std::string(ATOLL_SOURCE_DIR) + "/tests/data/tokenizers/" + name);
  return {std::istreambuf_iterator<char>(file), {}};
}

Json base(const std::string& name) {
  return Json::parse(data_file(name + ".json"));
}

Json changed(Json json, const Json& change) {
  for (const auto& [key, value] : change.items()) {
    if (key == "model") {
      json["model"].update(value);
    } else {
      json[key] = value;
    }
  }
  return json;
}

Tokenizer tokenizer_of(const Json& json) {
  // The way through a model file loses nothing.
  return Tokenizer(from_attachments(to_attachments(tokenizer_from_json(json.dump()))));
}

Ids encoded(const Tokenizer& tokenizer, const std::string& text, bool add_special = false) {
  EncodeMemory memory;
  return tokenizer.encode(text, add_special, memory);
}

std::string refusal(const Json& json) {
  try {
    tokenizer_from_json(json.dump());
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Tokenizer, GivesTheIdsAndTextsOfHuggingFace) {
  const Json expected = Json::parse(data_file("expected.json"));
  ASSERT_GE(expected.size(), 20U);
  for (const Json& variant : expected) {
    const std::string name =
        variant["base"].get<std::string>() + ", " + variant["name"].get<std::string>();
    const Tokenizer tokenizer = tokenizer_of(changed(base(variant["base"]), variant["change"]));
    EncodeMemory memory;
    for (int round = 0; round < 2; ++round) {  // the second from what is remembered
      for (const Json& pair : variant["encoded"]) {
        EXPECT_EQ(tokenizer.encode(pair[0].get<std::string>(), false, memory), pair[1].get<Ids>())
            << name << ": " << pair[0].dump();
      }
    }
    for (const Json& triple : variant["decoded"]) {
      const Ids ids = triple[0].get<Ids>();
      EXPECT_EQ(tokenizer.decode(ids, {}), triple[1].get<std::string>())
          << name << triple[0].dump();
      EXPECT_EQ(tokenizer.decode(ids, {.special_tokens = true}), triple[2].get<std::string>())
          << name << triple[0].dump();
    }
  }
}

/// Texts of whole characters: joined bytes that are none are mended in another number of places.
TEST(Tokenizer, TokensGiveTheBytesOfTheirText) {
  const Json expected = Json::parse(data_file("expected.json"));
  for (const Json& variant : expected) {
    const Tokenizer tokenizer = tokenizer_of(changed(base(variant["base"]), variant["change"]));
    for (const Json& pair : variant["encoded"]) {
      const Ids ids = encoded(tokenizer, pair[0].get<std::string>());
      for (const bool special : {false, true}) {
        std::string bytes;
        for (const TokenId id : ids) bytes += tokenizer.bytes_of(id, special);
        if (!is_utf8(bytes)) continue;
        EXPECT_EQ(bytes, tokenizer.decode(ids, {.special_tokens = special, .continues = true}))
            << variant["base"] << ", " << variant["name"];
      }
    }
  }
}

TEST(Tokenizer, LongWordsAreMergedAsShortOnes) {
  // Words of all lengths around the one from which on a heap takes over: each is a whole word of
  // the vocabulary's letters, and cutting at a merge's border cannot change what is left of it.
  const Tokenizer tokenizer = tokenizer_of(base("bytes"));
  std::string word;
  for (int i = 0; i < 200; ++i) {
    word += "thenandofin"[i * 7 % 11];
    const Ids ids = encoded(tokenizer, word);
    EXPECT_EQ(tokenizer.decode(ids, {}), word);
    // Byte-pair encoding by its definition: the pair with the first rank, the leftmost of these.
    Ids plain;
    for (const char c : word) {
      for (TokenId id = 0; id < tokenizer.spec().num_pieces(); ++id) {
        if (tokenizer.spec().piece(id) == std::string_view(&c, 1)) plain.push_back(id);
      }
    }
    const std::vector<std::uint32_t>& merges = tokenizer.spec().merges;
    for (bool merged = true; merged;) {
      merged = false;
      for (std::size_t m = 0; m < merges.size() && !merged; m += 3) {
        for (std::size_t at = 0; at + 1 < plain.size() && !merged; ++at) {
          if (plain[at] != static_cast<TokenId>(merges[m]) ||
              plain[at + 1] != static_cast<TokenId>(merges[m + 1])) {
            continue;
          }
          plain[at] = static_cast<TokenId>(merges[m + 2]);
          plain.erase(plain.begin() + static_cast<std::ptrdiff_t>(at) + 1);
          merged = true;
        }
      }
    }
    EXPECT_EQ(ids, plain) << word;
  }
}

TEST(Tokenizer, AddsTheTemplateOnce) {
  const Tokenizer tokenizer = tokenizer_of(base("bytes"));
  const Ids prefix = tokenizer.spec().prefix;
  const Ids suffix = tokenizer.spec().suffix;
  ASSERT_EQ(prefix.size(), 1U);
  ASSERT_EQ(suffix.size(), 1U);
  Ids hello = encoded(tokenizer, "hello");
  hello.insert(hello.begin(), prefix[0]);
  hello.push_back(suffix[0]);
  EXPECT_EQ(encoded(tokenizer, "hello", true), hello);
  EXPECT_EQ(encoded(tokenizer, "<s>hello", true), hello);
  EXPECT_EQ(encoded(tokenizer, "<s>hello</s>", true), hello);
  EXPECT_EQ(encoded(tokenizer, "", true), Ids({prefix[0], suffix[0]}));
}

TEST(Tokenizer, ManyThreadsGiveTheSame) {
  const Tokenizer tokenizer = tokenizer_of(base("characters"));
  const Json expected = Json::parse(data_file("expected.json"));
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      EncodeMemory memory;
      for (const Json& variant : expected) {
        if (variant["base"] != "characters" || variant["name"] != "as trained") continue;
        for (const Json& pair : variant["encoded"]) {
          const Ids ids = tokenizer.encode(pair[0].get<std::string>(), false, memory);
          wrong[t] += ids == pair[1].get<Ids>() ? 0 : 1;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(Tokenizer, TextThatGoesOnKeepsItsSpace) {
  const Tokenizer tokenizer = tokenizer_of(base("characters"));
  const Ids ids = encoded(tokenizer, "and the");
  EXPECT_EQ(tokenizer.decode(ids, {}), "and the");
  EXPECT_EQ(tokenizer.decode(ids, {.continues = true}), " and the");
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
  const Tokenizer tokenizer = tokenizer_of(base("bytes"));
  EXPECT_THROW(encoded(tokenizer, "a\xff"), Error);
  EXPECT_THROW(encoded(tokenizer, "\xed\xa0\x80"), Error);  // half of a pair of UTF-16
}

TEST(Tokenizer, NamesWhatIsNotSupported) {
  const std::vector<std::pair<Json, const char*>> cases = {
      {{{"normalizer", {{"type", "Lowercase"}}}}, "normalizer Lowercase is not supported"},
      {{{"pre_tokenizer", {{"type", "BertPreTokenizer"}}}}, "pre-tokenizer BertPreTokenizer"},
      {{{"decoder", nullptr}}, "without a decoder"},
      {{{"decoder", {{"type", "WordPiece"}}}}, "decoder WordPiece of a byte-level tokenizer"},
      {{{"model", {{"type", "Unigram"}}}}, "its model is \"Unigram\""},
      {{{"model", {{"dropout", 0.5}}}}, "dropout 0.5"},
      {{{"model", {{"merges", {"a zzz"}}}}}, "\"zzz\", which is not in the vocabulary"},
      {{{"model", {{"vocab", {{"a", -1}}}}}}, "an id is -1"},
      {{{"model", {{"vocab", {{"a", 1}, {"b", 1}}}, {"merges", Json::array()}}}}, "the id 1 twice"},
      {{{"post_processor", {{"type", "BertProcessing"}}}}, "post-processor BertProcessing"},
  };
  for (const auto& [change, message] : cases) {
    EXPECT_NE(refusal(changed(base("bytes"), change)).find(message), std::string::npos)
        << change.dump() << ": " << refusal(changed(base("bytes"), change));
  }
  for (const char* pattern : {"\\b", "[[:alpha:]]", "\\1", "\\h", "\\p{Emoji}", "(?x:a)", "[a[^b]]",
                              "[^a&&b]", "\\xE3", "(a", "a)", "*a", "\\K", "[b-\\d]", "\\", "["}) {
    Json json = base("bytes");
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern;
    std::string why = refusal(json);
    if (why.empty()) {  // PCRE2 refuses it
      try {
        tokenizer_of(json);
      } catch (const Error& error) {
        why = error.what();
      }
    }
    EXPECT_FALSE(why.empty()) << pattern;
  }
}

TEST(Tokenizer, AddedTokensHaveTheIdsOfTheLibrary) {
  Json json = base("bytes");
  const auto size = json["model"]["vocab"].size();
  json["added_tokens"] = {{{"id", 5000}, {"content", "<x>"}},
                          {{"id", 5001}, {"content", "a"}},
                          {{"id", 5002}, {"content", "<y>"}},
                          {{"id", 5003}, {"content", "<x>"}}};
  json["post_processor"] = nullptr;
  const Tokenizer tokenizer = tokenizer_of(json);
  const auto first = static_cast<TokenId>(size);
  EXPECT_EQ(encoded(tokenizer, "<x><y>"), Ids({first, first + 1}));
  EXPECT_LT(encoded(tokenizer, "a").at(0), first);
}

// Ranks of all bytes and some words, as tiktoken writes them.
std::string ranks_text(const std::vector<std::string>& base64_words) {
  std::string text;
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (int byte = 0; byte < 256; ++byte) {
    text += fmt::format("{}{}== {}\n", digits[static_cast<std::size_t>(byte >> 2)],
                        digits[static_cast<std::size_t>(byte & 3) << 4], byte);
  }
  for (std::size_t w = 0; w < base64_words.size(); ++w) {
    text += fmt::format("{} {}\n", base64_words[w], 256 + w);
  }
  return text;
}

TEST(Tokenizer, ReadsRanks) {
  // "ab", "bc", "abc", "abcd": by ranks "abcd" is a piece as a whole, and "xabcd" merges "ab"
  // first.
  TokenizerConfig config;
  config.tokenizer_class = "TikTokenTokenizer";
  AddedToken bos;
  bos.id = 261;
  bos.content = "[BOS]";
  config.added = {bos};
  const std::string text = ranks_text({"YWI=", "YmM=", "YWJj", "YWJjZA=="});
  const Tokenizer tokenizer(tokenizer_from_tiktoken(text, config));
  EXPECT_EQ(encoded(tokenizer, "abcd"), Ids({259}));
  EXPECT_EQ(encoded(tokenizer, "xabcd"), Ids({'x', 259}));
  EXPECT_EQ(encoded(tokenizer, "xbc"), Ids({'x', 257}));
  EXPECT_EQ(encoded(tokenizer, "[BOS]<|reserved_token_260|>"), Ids({261, 260}));
  EXPECT_EQ(tokenizer.spec().num_ids(), 260 + 256);
  // Han characters are pieces apart from letters around them.
  EXPECT_EQ(tokenizer.decode(encoded(tokenizer,
                                     "a\xe4\xb8\xad"
                                     "b"),
                             {}),
            "a\xe4\xb8\xad"
            "b");
  config.tokenizer_class = "Other";
  EXPECT_THROW(tokenizer_from_tiktoken(text, config), Error);
  EXPECT_THROW(from_base64("YW"), Error);
  EXPECT_THROW(from_base64("Y*I="), Error);
}

TEST(Tokenizer, ReadsTekken) {
  Json json = {{"config",
                {{"pattern", "\\p{L}+|\\s+|."},
                 {"default_vocab_size", 260},
                 {"default_num_special_tokens", 3}}},
               {"vocab", Json::array()}};
  const std::string ranks = ranks_text({"YWI=", "YmM="});
  std::size_t at = 0;
  for (int rank = 0; rank < 258; ++rank) {
    const std::size_t end = ranks.find(' ', at);
    json["vocab"].push_back({{"rank", rank}, {"token_bytes", ranks.substr(at, end - at)}});
    at = ranks.find('\n', at) + 1;
  }
  const Tokenizer tokenizer(tokenizer_from_tekken(json.dump()));
  EXPECT_EQ(encoded(tokenizer, "ab", true), Ids({1, 259}));
  EXPECT_EQ(encoded(tokenizer, "bc"), Ids({'b' + 3, 'c' + 3}));  // beyond the models' vocabulary
  EXPECT_EQ(encoded(tokenizer, "</s>"), Ids({2}));
  EXPECT_EQ(tokenizer.decode(Ids({0, 259, 2}), {}), "ab");
}

TEST(FolderTokenizer, TakesTemplateAndEndsFromTheConfiguration) {
  const TemporaryFolder folder;
  const auto write = [&](const char* name, const std::string& text) {
    std::ofstream(folder.path() / name) << text;
  };
  EXPECT_FALSE(tokenizer_of_folder(folder.path().string()).has_value());
  write("tokenizer.json", data_file("bytes.json"));
  write("tokenizer_config.json",
        R"({"chat_template": "old", "bos_token": {"content": "<s>"}, "eos_token": "</s>",
            "add_bos_token": true, "add_eos_token": false})");
  auto spec = tokenizer_of_folder(folder.path().string());
  ASSERT_TRUE(spec.has_value());
  EXPECT_EQ(spec->unsupported, "");
  EXPECT_EQ(spec->chat_template, "old");
  EXPECT_EQ(spec->prefix.size(), 1U);
  EXPECT_TRUE(spec->suffix.empty());
  EXPECT_EQ(spec->special_tokens.at("bos_token"), "<s>");
  write("chat_template.jinja", "new");
  spec = tokenizer_of_folder(folder.path().string());
  EXPECT_EQ(spec->chat_template, "new");
  ASSERT_EQ(spec->sources.size(), 3U);
  EXPECT_EQ(spec->sources[0].file, "tokenizer.json");
  write("tokenizer.json", R"({"model": {"type": "Unigram"}})");
  spec = tokenizer_of_folder(folder.path().string());
  EXPECT_NE(spec->unsupported.find("tokenizer.json: "), std::string::npos);
  EXPECT_EQ(spec->chat_template, "new");
  const TokenizerSpec back = from_attachments(to_attachments(*spec));
  EXPECT_EQ(back.unsupported, spec->unsupported);
  EXPECT_THROW(Tokenizer{back}, Error);
}

TEST(Utf8, MendsAsUnicodeRecommends) {
  EXPECT_EQ(mended_utf8("a\xe4\xb8\xad"), "a\xe4\xb8\xad");
  EXPECT_EQ(mended_utf8("\xe4\xb8"), "\xef\xbf\xbd");
  EXPECT_EQ(mended_utf8("\xe4\xb8z\xff\xff"), "\xef\xbf\xbdz\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(mended_utf8("\xed\xa0\x80"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(mended_utf8("\xf0\x9f\x92"), "\xef\xbf\xbd");
}

TEST(ModelText, IsBytesWhereThereAre256) {
  const ModelText bytes(256);
  EXPECT_EQ(bytes.why_not(), "");
  EncodeMemory memory;
  EXPECT_EQ(bytes.encode("a\xc3\xa4", true, memory), Ids({'a', 0xc3, 0xa4}));
  const auto text = [&](const Ids& ids) { return bytes.decode(ids, {}); };
  EXPECT_EQ(text({'a', 0xc3, 0xa4, 'z'}), "a\xc3\xa4z");
  EXPECT_EQ(text({0xc3}), "\xef\xbf\xbd");
  EXPECT_EQ(text({0xe2, 300, 0x82}), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(text({-1, 'b'}),
            "\xef\xbf\xbd"
            "b");
  const ModelText none(1000);
  EXPECT_NE(none.why_not().find("1000"), std::string::npos);
  EXPECT_THROW(none.encode("a", true, memory), Error);
}

}  // namespace
}  // namespace atl::io
