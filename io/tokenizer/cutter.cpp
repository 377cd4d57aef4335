#include "io/tokenizer/cutter.hpp"

#include <algorithm>
#include <string_view>

#include "io/tokenizer/normalizer.hpp"
#include "io/utf8.hpp"

namespace atl::io {
namespace {

/// A part of a piece, and whether it is a match.
struct Part {
  std::size_t begin = 0;
  std::size_t end = 0;
  bool is_match = false;
};

/// The parts of `text`, in order, without gaps. A match may be empty, but not right after another.
void find_parts(const Regex& regex, std::string_view text, std::vector<Part>& parts,
                RegexMemory& memory) {
  parts.clear();
  std::size_t covered = 0;
  std::size_t last_end = std::string::npos;
  for (std::size_t from = 0; from <= text.size();) {
    Regex::Match match;
    if (!regex.find(text, from, match, memory)) break;
    if (match.begin == match.end && match.end == last_end) {
      if (from >= text.size()) break;
      from += static_cast<std::size_t>(std::max(1, utf8_sequence(text.substr(from, 4))));
      continue;
    }
    if (covered < match.begin) parts.push_back({covered, match.begin, false});
    parts.push_back({match.begin, match.end, true});
    covered = from = last_end = match.end;
  }
  if (covered < text.size()) parts.push_back({covered, text.size(), false});
}

/// Makes neighbours of one kind, or a match and its neighbour, into one part.
void join_parts(std::vector<Part>& parts, SplitBehavior behavior) {
  if (behavior == SplitBehavior::removed) {
    std::erase_if(parts, [](const Part& part) { return part.is_match; });
  }
  if (behavior == SplitBehavior::isolated || behavior == SplitBehavior::removed) return;
  std::vector<Part> joined;
  for (const Part& part : parts) {
    bool joins = false;
    if (!joined.empty()) {
      const bool after_match = joined.back().is_match;
      joins = behavior == SplitBehavior::contiguous        ? part.is_match == after_match
              : behavior == SplitBehavior::merged_previous ? part.is_match && !after_match
                                                           : after_match && !part.is_match;
    }
    if (!joins) {
      joined.push_back(part);
      continue;
    }
    joined.back().end = part.end;
    joined.back().is_match = part.is_match;
  }
  parts = std::move(joined);
}

void split(const Regex& regex, const CutStep& step, const std::string& text,
           std::vector<Piece>& pieces, RegexMemory& memory) {
  std::vector<Piece> cut;
  cut.reserve(pieces.size());
  std::vector<Part> parts;
  for (const Piece& piece : pieces) {
    const std::string_view inside =
        std::string_view(text).substr(piece.begin, piece.end - piece.begin);
    find_parts(regex, inside, parts, memory);
    if (step.invert) {
      for (Part& part : parts) part.is_match = !part.is_match;
    }
    join_parts(parts, step.behavior);
    for (const Part& part : parts) {
      if (part.begin < part.end) cut.push_back({piece.begin + part.begin, piece.begin + part.end});
    }
  }
  pieces = std::move(cut);
}

/// Replaces or prepends in each piece.
void rewrite(const CutStep& step, bool is_start, std::string& text, std::vector<Piece>& pieces) {
  std::string result;
  for (std::size_t p = 0; p < pieces.size(); ++p) {
    std::string piece = text.substr(pieces[p].begin, pieces[p].end - pieces[p].begin);
    if (step.kind == CutStep::Kind::replace) {
      replace_all(piece, step.from, step.to);
    } else {
      const bool wanted = !step.only_first || (is_start && p == 0 && pieces[p].begin == 0);
      if (wanted && !piece.starts_with(step.to)) piece.insert(0, step.to);
    }
    pieces[p].begin = result.size();
    result += piece;
    pieces[p].end = result.size();
  }
  text = std::move(result);
  std::erase_if(pieces, [](const Piece& piece) { return piece.begin == piece.end; });
}

}  // namespace

Cutter::Cutter(const std::vector<CutStep>& steps) {
  for (const CutStep& step : steps) steps_.push_back({step, Regex(step.pattern)});
}

void Cutter::cut(std::string& text, bool is_start, std::vector<Piece>& pieces,
                 RegexMemory& memory) const {
  pieces.clear();
  if (!text.empty()) pieces.push_back({0, text.size()});
  for (const Step& s : steps_) {
    if (s.step.kind == CutStep::Kind::split) {
      split(s.regex, s.step, text, pieces, memory);
    } else {
      rewrite(s.step, is_start, text, pieces);
    }
  }
}

}  // namespace atl::io
