#include "io/json_shown.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace atl::io {
namespace {

using Json = nlohmann::json;

TEST(JsonShown, IsTheValueAsItStandsInItsFile) {
  EXPECT_EQ(shown(Json::parse(R"({"a": [1, 2.5, null, "x"]})")), R"({"a":[1,2.5,null,"x"]})");
  EXPECT_EQ(shown(Json(std::string(58, 'x'))), '"' + std::string(58, 'x') + '"');
}

TEST(JsonShown, IsShortAndAscii) {
  EXPECT_EQ(shown(Json(std::string(59, 'x'))), '"' + std::string(56, 'x') + "...");
  EXPECT_EQ(shown(Json("\u00e9")), R"("\u00e9")");
  EXPECT_EQ(shown(Json("\xff")), R"("\ufffd")");  // no UTF-8
}

TEST(JsonText, TakesPathsOfAnyBytes) {
  const Json paths = {{"a", "mod\xe8le/\n"}, {"b", "\u00e9"}};
  EXPECT_EQ(json_text(paths), "{\"a\":\"mod\xef\xbf\xbdle/\\n\",\"b\":\"\u00e9\"}");
  EXPECT_EQ(json_text(nlohmann::ordered_json{{"b", 1}, {"a", "\xff"}}, 1),
            "{\n \"b\": 1,\n \"a\": \"\xef\xbf\xbd\"\n}");
}

}  // namespace
}  // namespace atl::io
