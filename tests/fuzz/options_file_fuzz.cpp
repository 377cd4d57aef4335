// An options file (--config, TOML) from anywhere: refused as wrong use, or the options are sound.
#include "app/config.hpp"
#include "tests/fuzz/fuzz_input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace atl;
  const fuzz::MemoryFile file({data, size});
  const std::string path = file.path();
  const char* arguments[] = {"atoll", "run",     "--config", path.c_str(), "--model",
                             "m.h5",  "--input", "i.jsonl",  "--output",   "o.jsonl"};
  try {
    const CommandLine line = parse_command_line(std::size(arguments), arguments);
    if (line.command == Command::none) return 0;  // the file asks for help
    const RunOptions& run = line.run;
    fuzz::expect(line.command == Command::run && run.model == "m.h5" && run.output == "o.jsonl");
    fuzz::expect(run.chunks.value_or(1) >= 1 && run.chunks.value_or(1) <= max_chunks &&
                 run.max_tokens >= 1 && run.deadline >= 0);
    fuzz::expect(run.step_tokens >= 1 && run.max_sequences >= 1 && run.kv_tokens >= 0);
  } catch (const UsageError& error) {
    fuzz::expect(*error.what() != '\0');
  }
  return 0;
}
