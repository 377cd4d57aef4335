#pragma once
// What a model's tokenizer makes of a text.

#include "app/config.hpp"

namespace atl {

/// Prints the ids of the input, or with `detokenize` the text of its ids. Throws Error: no such
/// model or input, no text with this model, a line that is not what it must be.
void tokenize(const TokenizeOptions& options);

}  // namespace atl
