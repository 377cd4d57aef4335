#pragma once
// The tokenizer of a Hugging Face folder.

#include <optional>
#include <string>

#include "io/tokenizer/spec.hpp"

namespace atl::io {

/// The tokenizer in a folder: of tokenizer.json, else tiktoken.model, else tekken.json; with the
/// chat template and BOS and EOS as tokenizer_config.json has them. Nothing where the folder has no
/// tokenizer at all. What is not supported makes a spec that says so in `unsupported`; no file
/// makes it throw.
std::optional<TokenizerSpec> tokenizer_of_folder(const std::string& folder);

/// A line about a tokenizer: its kind, its size, what it was made from, or why there is no text.
std::string description_of(const TokenizerSpec& spec);

}  // namespace atl::io
