#pragma once
// What the command line (or a configuration file) says: one printable struct per command.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "app/backend_kind.hpp"
#include "app/mode.hpp"
#include "app/model/kept_weights.hpp"
#include "app/plan/balance_policy.hpp"
#include "app/plan/gate_bias.hpp"
#include "app/plan/interval.hpp"
#include "app/plan/job_layout.hpp"
#include "app/plan/schedule.hpp"
#include "app/plan/update_policy.hpp"
#include "app/progress_style.hpp"
#include "app/share_prefixes.hpp"
#include "comm/transports/kind.hpp"
#include "compute/cpu/isa.hpp"
#include "compute/types.hpp"
#include "io/line_format.hpp"

namespace atl {

inline constexpr int max_chunks = 8;

struct RunOptions {
  std::string config;  ///< file whose options were read before the command line's
  std::string model;
  std::string input;
  std::string output;
  std::optional<io::LineFormat> format;  ///< none: auto, the first line's
  Mode mode = Mode::generate;
  int max_tokens = 64;
  std::uint64_t seed = 0;              ///< for the draws of requests that name none
  std::optional<BackendKind> backend;  ///< none: auto
  std::optional<DType> dtype;          ///< none: auto, as on file
  std::optional<compute::CpuIsa> isa;  ///< none: auto
  std::optional<int> chunks;           ///< none: auto
  std::optional<Route> route;          ///< none: auto
  int slots = 0;          ///< experts of a layer on each rank; 0: as many as one place each needs
  std::string placement;  ///< file that says which rank has which expert; empty: by slots
  Balance balance = Balance::none;
  BalanceOptions balance_when;
  BiasOptions bias;
  std::int64_t check_experts = 64;  ///< passes between two checks of an expert's weights; 0: none
  std::string node_ranks;           ///< see nodes_of_ranks(); empty: as ranks share memory
  std::string layout;            ///< all of the next in one word, see division_of(); empty: by them
  std::string machine;           ///< file that --layout auto plans with
  bool foreign_machine = false;  ///< its figures may be another processor's
  Division division;             ///< but for the next
  std::optional<int> expert_tp;  ///< ranks that share each expert; none: auto
  std::optional<compute::OutputCut> tp_output;  ///< none: auto
  bool show_layout = false;                     ///< say who is with whom, and stop
  bool no_overlap = false;
  int threads = 0;  ///< per rank; 0: this rank's share of the job's cores
  std::optional<comm::TransportKind> transport;  ///< none: auto
  std::string cluster;         ///< file with what the links carry; read, or written
  bool measure_links = false;  ///< also where the file has them
  std::string report;
  std::string status;  ///< file that says how far the run is, every few seconds; empty: none
  std::string trace;
  std::string dump_activations;  ///< layers: "all", or numbers with commas; empty: none
  std::string activations;       ///< file for them
  std::string record_routing;    ///< file for what the routers choose; empty: none
  std::string replay_routing;    ///< file of choices that take their place; empty: none
  SharePrefixes share_prefixes = SharePrefixes::automatic;
  int hold_requests = 64;  ///< MiB of requests that wait in memory; others are read again
  int speculate = 0;       ///< tokens proposed for a sequence at once; 0: none
  int max_sequences = 64;  ///< per rank at once
  int step_tokens = 2048;  ///< per rank and pass
  int min_chunk_tokens = 32;
  double memory_gb = 0;                   ///< a rank takes at most, in 10^9 bytes; 0: what is there
  std::int64_t kv_tokens = 0;             ///< KV cache per rank in tokens; 0: from the requests
  double deadline = 300;                  ///< seconds without progress
  double peak_tflops = 0;                 ///< stated peak of one rank, for MFU
  std::optional<ProgressStyle> progress;  ///< none: auto
  std::string checkpoint_dir;             ///< empty: no checkpoints
  std::string checkpoint_every = "10m";   ///< see interval_of()
  std::string stage;                      ///< folder of each node's own; empty: none
  bool resume = false;                    ///< go on where an interrupted run stopped
  std::string shard;                      ///< see shard_of(); empty: all requests
  std::string control;                    ///< folder for updates of the weights; empty: none
  UpdateMode update = UpdateMode::drain;

  /// Every option with its value as text, in a fixed order: for the report, and to compare ranks.
  std::vector<std::pair<std::string, std::string>> items() const;
};

/// Reads "200" or "200steps", "90s", "10m", "2h". Throws UsageError.
Interval interval_of(const std::string& text);

struct InitOptions {
  std::string preset;  ///< empty: `config` says which model
  std::string config;  ///< file (JSON) that describes it
  std::uint64_t seed = 0;
  std::string output;
  double deadline = 300;  ///< seconds for a rank that does not answer
};

struct ImportOptions {
  std::string folder;
  std::string output;
  KeptWeights weights = KeptWeights::none;
};

struct LayoutOptions {
  std::string preset;  ///< of these three one says which model
  std::string config;
  std::string model;
  int ranks = 1;
  RunOptions run;  ///< those that say who does what, and how large passes are
};

struct PlaceOptions {
  std::string routing;  ///< recorded, or a .npy
  std::string cluster;  ///< which ranks are on which node
  std::string output;
  int top_k = 0;  ///< the first ones of a token count; 0: all
  int slots = 0;  ///< as in a run
  double holdout = 0.5;
  Route route = Route::nodes;
  int experts = 0;      ///< of a .npy; 0: the largest number and one
  int first_layer = 0;  ///< of a .npy
  std::uint64_t seed = 0;
  int threads = 0;  ///< 0: as many as cores
};

struct PlanOptions {
  std::string preset;  ///< of these four one says which model
  std::string config;
  std::string model;
  std::string hf;
  KeptWeights weights = KeptWeights::none;  ///< that a configuration says are in few bits
  std::string cluster;                      ///< the machine
  std::string workload;                     ///< prompts and new tokens
  int ranks = 0;                            ///< 0: all of the machine
  std::string routing;                      ///< recorded, or a .npy; empty: by a law
  double skew = 0;                          ///< sigma of the law
  bool all_layouts = false;
  std::string output;  ///< folder; empty: the text alone
  std::uint64_t seed = 1;
  RunOptions run;  ///< those that say who does what, and how large passes are
};

struct InspectOptions {
  std::string file;
  bool no_verify = false;
};

struct CheckOptions {
  std::string folder = ".";  ///< that all ranks are to see
  std::string report;
  bool no_rates = false;
};

struct DiffOptions {
  std::string a;
  std::string b;
  double tolerance = 0;
};

struct JoinOptions {
  std::string output;
  int shards = 0;  ///< 0: as the parts' names say
  bool keep_parts = false;
};

struct TokenizeOptions {
  std::string model;        ///< a model file, or a folder with a tokenizer
  std::string input = "-";  ///< "-": standard input
  bool detokenize = false;
  bool json_lines = false;         ///< each line is a JSON string, or a list of ids
  bool pieces = false;             ///< a line for each token, with its text
  bool no_special_tokens = false;  ///< add none, or leave them out
  bool chat_template = false;      ///< this instead
};

enum class Command : std::uint8_t {
  none,
  run,
  init,
  import,
  inspect,
  diff,
  join,
  tokenize,
  layout,
  place,
  plan,
  check
};

/// The layers that `text` names ("all", or numbers with commas) of a model with `num_layers`,
/// rising. Throws UsageError.
std::vector<int> layers_of(const std::string& text, int num_layers);

/// How many of `num_ranks` consecutive ranks are on each node, as `text` says: numbers with commas
/// between, or one number for all. The node of each rank. Throws UsageError.
std::vector<int> nodes_of_ranks(const std::string& text, int num_ranks);

struct CommandLine {
  Command command = Command::none;  ///< none: `text` is all there is to do
  RunOptions run;
  InitOptions init;
  ImportOptions import;
  InspectOptions inspect;
  DiffOptions diff;
  JoinOptions join;
  TokenizeOptions tokenize;
  LayoutOptions layout;
  PlaceOptions place;
  PlanOptions plan;
  CheckOptions check;
  std::string text;      ///< help, or the program's name where its version is wanted
  bool version = false;  ///< see version_text()

  /// The command and all its options as text, in a fixed order.
  std::vector<std::pair<std::string, std::string>> items() const;
};

/// Parses and checks the command line. Throws UsageError with the reason and what would work.
CommandLine parse_command_line(int argc, const char* const* argv);

}  // namespace atl
