#pragma once
// The cluster file: nodes, their ranks and what the links between them carry; measured once, used
// by later runs on the same nodes, and readable by people and by `jq`.

#include <nlohmann/json.hpp>
#include <string>

#include "comm/links.hpp"
#include "comm/topology.hpp"

namespace atl {

/// A machine as a job sees it, and where the figures come from.
struct Cluster {
  comm::Topology topology;
  comm::Links links;
  std::string measured;  ///< date and time, UTC
  std::string mpi;       ///< library and version
};

/// The file's text: {format, format_version, nodes: [{name, ranks}], links: {inside_node,
/// between_nodes}, measured, mpi}. Speeds in bytes and seconds; null where there is no such link.
std::string cluster_text(const Cluster& cluster);

/// The links part alone, as it stands in file and report.
nlohmann::json links_json(const comm::Links& links);

/// Reads what cluster_text wrote, or a person. Throws Error, starting with `name`, with what is
/// missing or wrong. Ranks are numbered node by node.
Cluster parse_cluster(const std::string& text, const std::string& name);

/// Reads that from a file. Throws Error where there is none.
Cluster read_cluster(const std::string& path);

/// Whether figures for `a` hold for `b`: the same nodes with as many ranks each, in any order.
bool same_machine(const comm::Topology& a, const comm::Topology& b);

/// Collective. The links of this run's nodes: from `file` where it exists, is of the same machine
/// and `measure` is false; else measured, and written to `file` if that is not empty. Rank 0 alone
/// touches the file. Throws AgreedFailure when it is no cluster file or cannot be written.
Cluster find_cluster(const comm::Communicator& world, const comm::Topology& topology,
                     const std::string& file, bool measure);

}  // namespace atl
