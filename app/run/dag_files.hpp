#pragma once
// A graph as text: for graphviz, for programs that read GraphML, and as a picture that needs
// neither.

#include <string>

#include "app/plan/dag.hpp"

namespace atl {

std::string dot_text(const Dag& dag);
std::string graphml_text(const Dag& dag);

/// Layers from top to bottom, each node below all that lead to it; long chains in several columns,
/// read from left to right. Communication is dashed.
std::string svg_text(const Dag& dag);

/// Text as it stands in XML.
std::string xml_text(const std::string& text);

}  // namespace atl
