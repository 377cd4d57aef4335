// A model's configuration from anywhere, ours and Hugging Face's: refused with a message, or what
// was read survives being written and read again.
#include <string_view>

#include "app/model/import.hpp"
#include "app/model/model_config.hpp"
#include "app/model/tensors.hpp"
#include "tests/fuzz/fuzz_input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace atl;
  const std::string text(reinterpret_cast<const char*>(data), size);
  ModelConfig config;
  if (fuzz::accepted([&] { config = ModelConfig::from_json(text); })) {
    const std::string again = config.to_json();
    fuzz::expect(ModelConfig::from_json(again).to_json() == again);
    if (config.shape.num_layers <= 64) fuzz::expect(!tensors_of(config).empty());
  }
  std::string converted;
  if (fuzz::accepted([&] { converted = config_from_hf(text, "bfloat16"); })) {
    fuzz::expect(ModelConfig::from_json(converted).to_json() == converted);
  }
  return 0;
}
