#include "app/config.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "compute/error.hpp"
#include "tests/temporary_folder.hpp"

namespace atl {
namespace {

CommandLine parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "atoll");
  return parse_command_line(static_cast<int>(arguments.size()), arguments.data());
}

/// A file that is gone when the test ends.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text) { std::ofstream(path()) << text; }
  std::string path() const { return (folder_.path() / "options.toml").string(); }

 private:
  TemporaryFolder folder_;
};

std::string refusal(const std::vector<const char*>& arguments) {
  try {
    parse(arguments);
  } catch (const UsageError& error) {
    EXPECT_EQ(error.exit_code(), 2);
    return error.what();
  }
  return "accepted";
}

TEST(Config, ReadsTheRunCommand) {
  const CommandLine line = parse({"run", "--model", "m", "--input=i", "--output", "o", "--chunks",
                                  "3", "--no-overlap", "--mode", "score", "--threads", "2"});
  EXPECT_EQ(line.command, Command::run);
  EXPECT_EQ(line.run.model, "m");
  EXPECT_EQ(line.run.input, "i");
  EXPECT_EQ(line.run.chunks, 3);
  EXPECT_TRUE(line.run.no_overlap);
  EXPECT_EQ(line.run.mode, Mode::score);
  EXPECT_EQ(line.run.max_tokens, 64);
  EXPECT_EQ(line.run.seed, 0U);
}

TEST(Config, ReadsWhatMemoryMayDecide) {
  const auto run = [](std::vector<const char*> more) {
    more.insert(more.begin(), {"run", "--model", "m", "--input", "i", "--output", "o"});
    return parse(more).run;
  };
  EXPECT_EQ(run({}).expert_tp, std::nullopt);
  EXPECT_EQ(run({"--expert-tp", "auto"}).expert_tp, std::nullopt);
  EXPECT_EQ(run({"--expert-tp", "2"}).expert_tp, 2);
  EXPECT_EQ(run({"--memory-limit", "1.5"}).memory_gb, 1.5);
  using compute::OutputCut;
  EXPECT_EQ(run({}).tp_output, std::nullopt);
  EXPECT_EQ(run({"--tp-output", "rows"}).tp_output, OutputCut::rows);
  EXPECT_EQ(run({"--tp-sum"}).tp_output, OutputCut::sum);
  EXPECT_EQ(run({"--tp-sum", "--tp", "2"}).tp_output, OutputCut::sum);
  EXPECT_EQ(run({"--tp-sum", "float32"}).tp_output, OutputCut::sum);
  EXPECT_EQ(run({"--tp-sum", "bf16"}).tp_output, OutputCut::sum_bf16);
  EXPECT_EQ(run({"--tp-sum=bf16"}).tp_output, OutputCut::sum_bf16);
}

TEST(Config, ReadsShardsAndTheirJoin) {
  const CommandLine run =
      parse({"run", "--model", "m", "--input", "i", "--output", "o", "--shard", "1/2"});
  EXPECT_EQ(run.run.shard, "1/2");
  EXPECT_NE(refusal({"run", "--model", "m", "--input", "i", "--output", "o", "--shard", "2/2"})
                .find("numbers 0 to 1"),
            std::string::npos);
  EXPECT_NE(
      refusal({"run", "--model", "m", "--input", "i", "--output", "o", "--shard="}).find("--shard"),
      std::string::npos);
  const CommandLine join = parse({"join", "--output", "o", "--shards", "3", "--keep-parts"});
  EXPECT_EQ(join.command, Command::join);
  EXPECT_EQ(join.join.output, "o");
  EXPECT_EQ(join.join.shards, 3);
  EXPECT_TRUE(join.join.keep_parts);
  EXPECT_NE(refusal({"join"}).find("--output is required"), std::string::npos);
}

TEST(Config, ReadsWhereUpdatesComeFrom) {
  const auto run = [](std::vector<const char*> more) {
    std::vector<const char*> all = {"run", "--model", "m", "--input", "i", "--output", "o"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  EXPECT_EQ(parse(run({})).run.control, "");
  const RunOptions options = parse(run({"--control", "c", "--update", "in-flight"})).run;
  EXPECT_EQ(options.control, "c");
  EXPECT_EQ(options.update, UpdateMode::in_flight);
  EXPECT_EQ(parse(run({"--control", "c"})).run.update, UpdateMode::drain);
  EXPECT_NE(refusal(run({"--update", "drain"})).find("--control"), std::string::npos);
  EXPECT_EQ(parse(run({"--control", "c", "--balance", "replicate"})).run.control, "c");
  EXPECT_NE(refusal(run({"--control", "c", "--balance", "bias"})).find("--control"),
            std::string::npos);
  EXPECT_NE(refusal(run({"--control", "c", "--record-routing", "r"})).find("--control"),
            std::string::npos);
}

TEST(Config, TheCommandLineHasTheLastWordOverAFile) {
  const TemporaryFile file(
      "model = \"m\"\ninput = \"a b\"\noutput = \"o\"\nchunks = 3\nno-overlap = true\n");
  const std::string path = file.path();
  const CommandLine line = parse({"run", "--config", path.c_str(), "--chunks", "5"});
  EXPECT_EQ(line.run.input, "a b");
  EXPECT_EQ(line.run.chunks, 5);
  EXPECT_TRUE(line.run.no_overlap);
  const TemporaryFile marked("\xef\xbb\xbfmodel = \"m\"\r\ninput = \"i\"\r\noutput = \"o\"\r\n");
  const std::string marked_path = marked.path();
  EXPECT_EQ(parse({"run", "--config", marked_path.c_str()}).run.model, "m");
}

TEST(Config, RefusesWithTheReason) {
  const auto needed = [](std::vector<const char*> more) {
    more.insert(more.begin(), {"run", "--model", "m", "--input", "i", "--output", "o"});
    return refusal(more);
  };
  EXPECT_EQ(needed({}), "accepted");
  EXPECT_NE(needed({"--chunks", "9"}).find("not in range 1 to 8"), std::string::npos);
  EXPECT_NE(needed({"--chunks", "two"}).find("two"), std::string::npos);
  EXPECT_NE(needed({"--mode", "dream"}).find("generate,score"), std::string::npos);
  EXPECT_NE(needed({"--bogus", "1"}).find("--bogus"), std::string::npos);
  EXPECT_NE(needed({"--seed", "-1"}).find("--seed"), std::string::npos);
  EXPECT_EQ(needed({"--seed", "18446744073709551615"}), "accepted");
  EXPECT_NE(needed({"--seed", "18446744073709551616"}).find("--seed"), std::string::npos);
  EXPECT_NE(needed({"--seed", "1.5"}).find("--seed"), std::string::npos);
  EXPECT_NE(needed({"--deadline", "-1"}).find("--deadline"), std::string::npos);
  EXPECT_NE(needed({"--config", "/nowhere/at/all"}).find("/nowhere/at/all"), std::string::npos);
  EXPECT_NE(refusal({"run"}).find("--model is required"), std::string::npos);
  EXPECT_NE(refusal({}).find("subcommand"), std::string::npos);
  EXPECT_NE(refusal({"init", "--preset", "none", "--output", "o"}).find("bench-cpu"),
            std::string::npos);
  const TemporaryFile file("bogus = 1\n");
  const std::string path = file.path();
  EXPECT_NE(needed({"--config", path.c_str()}).find("bogus"), std::string::npos);
}

TEST(Config, HelpIsTextAndNoCommand) {
  EXPECT_EQ(parse({"--help"}).command, Command::none);
  EXPECT_NE(parse({"run", "--help"}).text.find("atoll run"), std::string::npos);
  EXPECT_NE(parse({"--version"}).text.find("atoll"), std::string::npos);
}

}  // namespace
}  // namespace atl
