// A safetensors file from anywhere: refused with a message, or every tensor can be read.
#include "io/safetensors.hpp"
#include "tests/fuzz/fuzz_input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace atl;
  const fuzz::MemoryFile file({data, size});
  fuzz::accepted([&] {
    const io::Safetensors tensors({file.path()});
    for (const auto& [name, tensor] : tensors.tensors()) {
      fuzz::expect(tensor.bytes >= 0 && tensor.offset >= 8 &&
                   tensor.offset + tensor.bytes <= static_cast<std::int64_t>(size));
      std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.bytes));
      tensors.read(tensor, bytes);
    }
  });
  return 0;
}
