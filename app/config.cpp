#include "app/config.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <sstream>

#include "app/config_balance.hpp"
#include "app/config_check.hpp"
#include "app/config_choice.hpp"
#include "app/config_layout.hpp"
#include "app/config_place.hpp"
#include "app/config_plan.hpp"
#include "app/config_prompts.hpp"
#include "app/model/model_config.hpp"
#include "app/run/shards.hpp"
#include "compute/error.hpp"

namespace atl {

using compute::CpuIsa;

namespace {

std::vector<std::optional<comm::TransportKind>> transport_choices() {
  std::vector<std::optional<comm::TransportKind>> choices = {std::nullopt};
  for (const comm::TransportInfo& transport : comm::transports)
    choices.emplace_back(transport.kind);
  return choices;
}

/// What is wrong with a seed; CLI11 by itself takes a number beyond 64 bits for the largest.
std::string problem_of_seed(const std::string& text) {
  std::uint64_t seed = 0;
  const char* end = text.data() + text.size();
  const auto [parsed, error] = std::from_chars(text.data(), end, seed);
  if (error == std::errc() && parsed == end) return "";
  return fmt::format("\"{}\" is not an integer from 0 to 2^64-1", text);
}

void add_run(CLI::App& app, RunOptions& o) {
  // Expanded by with_config_files before parsing; here for the help text.
  app.add_option("--config", o.config, "Read options from this file (TOML, same names)");
  app.add_option("--model", o.model, "Model file (HDF5, from init or import)")->required();
  app.add_option("--input", o.input, "Requests, one JSON object a line")->required();
  app.add_option("--output", o.output, "Results, one JSON object a line")->required();
  add_choice(app, "--format", o.format,
             {std::nullopt, io::LineFormat::atoll, io::LineFormat::openai},
             "Form of requests and results; openai: OpenAI's batch format; auto: the first line's");
  add_choice(app, "--mode", o.mode, {Mode::generate, Mode::score},
             "generate text, or score the prompts");
  app.add_option("--max-tokens", o.max_tokens, "New tokens for requests that name no number")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--seed", o.seed, "Seed of the job, for requests that name none")
      ->check(problem_of_seed)
      ->capture_default_str();
  add_choice(app, "--backend", o.backend, {std::nullopt, BackendKind::cpu, BackendKind::cuda},
             "Where the arithmetic runs");
  add_choice(app, "--dtype", o.dtype,
             {std::nullopt, DType::bfloat16, DType::float16, DType::float32},
             "Activations and GEMM operands; auto: as on file");
  add_choice(app, "--isa", o.isa,
             {std::nullopt, CpuIsa::avx2, CpuIsa::avx512, CpuIsa::avx512_bf16, CpuIsa::avx512_amx},
             "Instruction sets of the CPU; auto: the widest that all ranks have");
  add_chunks(app, o);
  app.add_option("--threads", o.threads,
                 "Arithmetic threads per rank; 0: the job's cores / ranks of a node")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  add_choice(app, "--transport", o.transport, transport_choices(),
             "How tokens travel; auto: the first that passes a test");
}

void add_run_files(CLI::App& app, RunOptions& o) {
  app.add_option(
      "--cluster", o.cluster,
      "Speed of the links (JSON): read if it is of these nodes, else measured and written");
  app.add_flag("--measure-links", o.measure_links,
               "Measure the links before the run, for the report");
  app.add_option("--report", o.report, "Write a JSON report here");
  app.add_option("--status", o.status, "Say here every few seconds how far the run is (JSON)");
  app.add_option("--trace", o.trace, "Write a Perfetto (Chrome JSON) trace here");
  CLI::Option* layers = app.add_option("--dump-activations", o.dump_activations,
                                       "Write x after these layers: all, or e.g. 0,3,15");
  CLI::Option* file = app.add_option("--activations", o.activations, "File for them (HDF5)");
  app.add_option("--record-routing", o.record_routing,
                 "Write the experts that every token chose, with their weights (HDF5)");
  app.add_option("--replay-routing", o.replay_routing,
                 "Let tokens take the experts of this file: a recorded one, or .npy of shape "
                 "[tokens, layers, k]");
  layers->needs(file);
  file->needs(layers);
}

void add_run_sizes(CLI::App& app, RunOptions& o) {
  add_pass_sizes(app, o);
  app.add_option("--min-chunk-tokens", o.min_chunk_tokens, "Steps are not cut finer than this")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--memory-limit", o.memory_gb,
                 "Memory that a rank takes at most, in 10^9 bytes; 0: what a GPU or the job has")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--kv-tokens", o.kv_tokens,
                 "KV cache per rank, in tokens; 0: what the requests need and memory allows")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--deadline", o.deadline,
                 "Give up after this many seconds without progress; 0: never")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
  app.add_option("--peak-tflops", o.peak_tflops, "Peak of one rank, for MFU in the report")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--checkpoint-dir", o.checkpoint_dir,
                 "Keep the run's state in this folder, which all ranks see");
  app.add_option("--checkpoint-every", o.checkpoint_every,
                 "Steps (200 or 200steps) or time (90s, 10m, 2h) between two checkpoints")
      ->capture_default_str();
  app.add_option("--stage", o.stage,
                 "Folder of each node's own, such as a local disk: the model is copied there once, "
                 "and read from there")
      ->check([](const std::string& text) { return text.empty() ? "which folder?" : ""; });
  app.add_flag("--resume", o.resume, "Go on where an interrupted run of the same job stopped");
  app.add_option("--shard", o.shard,
                 "K/N, K from 0: compute every Nth request, for join; N such runs are one");
  add_choice(app, "--progress", o.progress,
             {std::nullopt, ProgressStyle::bar, ProgressStyle::lines, ProgressStyle::none},
             "Progress on stderr");
}

void add_run_updates(CLI::App& app, RunOptions& o) {
  CLI::Option* control =
      app.add_option("--control", o.control,
                     "Folder where update.json may name other weights while the run goes on");
  add_choice(app, "--update", o.update, {UpdateMode::drain, UpdateMode::in_flight},
             "Requests under way end with the weights they began with, or go on with new ones")
      ->needs(control);
  for (const char* name : {"--record-routing", "--replay-routing", "--dump-activations"}) {
    control->excludes(app.get_option(name));  // files of one model
  }
}

/// The options that a file sets. Editors of some systems begin it with a byte order mark.
std::vector<CLI::ConfigItem> items_of_file(const std::string& path) {
  constexpr std::string_view mark = "\xef\xbb\xbf";
  std::ifstream file(path, std::ios::binary);
  if (!file.good()) throw CLI::FileError::Missing(path);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (text.starts_with(mark)) text.erase(0, mark.size());
  std::istringstream options(text);
  return CLI::ConfigTOML().from_config(options);
}

/// The arguments with every `--config FILE` preceded by the options that the file sets, so that the
/// command line has the last word.
std::vector<std::string> with_config_files(int argc, const char* const* argv) {
  std::vector<std::string> given(argv + std::min(argc, 1), argv + argc);
  std::vector<std::string> from_files;
  // Of init, --config names a model.
  if (given.empty() || given[0] != "run") return given;
  for (std::size_t i = 0; i < given.size(); ++i) {
    std::string path;
    if (given[i] == "--config" && i + 1 < given.size()) path = given[i + 1];
    if (given[i].starts_with("--config=")) path = given[i].substr(9);
    if (path.empty()) continue;
    try {
      for (const CLI::ConfigItem& item : items_of_file(path)) {
        for (const std::string& value : item.inputs) {
          from_files.push_back(fmt::format("--{}={}", item.fullname(), value));
        }
      }
    } catch (const CLI::Error& error) {
      throw UsageError(fmt::format("{}: {}; check --config", path, error.what()));
    }
  }
  // Options belong to the subcommand, which comes first.
  if (!given.empty()) given.insert(given.begin() + 1, from_files.begin(), from_files.end());
  return given;
}

/// CLI11 only says that a command is missing where one is misspelt.
void require_known_command(const CLI::App& app, const std::vector<std::string>& arguments) {
  if (arguments.empty() || arguments[0].starts_with('-')) return;
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands(nullptr)) names.push_back(command->get_name());
  if (std::find(names.begin(), names.end(), arguments[0]) != names.end()) return;
  throw UsageError(fmt::format("unknown command \"{}\"; choose one of {}; see atoll --help",
                               arguments[0], fmt::join(names, ", ")));
}

}  // namespace

namespace {

CLI::App& add_init(CLI::App& app, InitOptions& o) {
  CLI::App& init = *app.add_subcommand("init", "Write a model with random weights");
  CLI::Option* preset =
      init.add_option("--preset", o.preset, "Which model")->check(CLI::IsMember(preset_names()));
  init.add_option("--config", o.config,
                  "A model of this description instead: JSON, as atoll inspect shows it or as a "
                  "Hugging Face folder has it")
      ->excludes(preset);
  init.add_option("--seed", o.seed, "Seed of the weights")
      ->check(problem_of_seed)
      ->capture_default_str();
  init.add_option("--output", o.output, "Model file to write")->required();
  init.add_option("--deadline", o.deadline,
                  "Give up when a rank does not answer for so many seconds; 0: never")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
  return init;
}

CLI::App& add_import(CLI::App& app, ImportOptions& o) {
  CLI::App& import = *app.add_subcommand("import", "Convert a Hugging Face model folder");
  import.add_option("folder", o.folder, "Folder with config.json and *.safetensors")->required();
  import.add_option("--output", o.output, "Model file to write")->required();
  add_choice(
      import, "--weights", o.weights, {KeptWeights::none, KeptWeights::coded},
      "What becomes of weights in FP8, MXFP4 or INT4: numbers of the folder's dtype, or they "
      "stay as they are, in the file and in memory");
  return import;
}

void add_inspect(CLI::App& app, InspectOptions& o) {
  CLI::App& inspect = *app.add_subcommand(
      "inspect",
      "List a file that atoll wrote (model, checkpoint, routing) and verify its checksums");
  inspect
      .add_option(
          "file", o.file,
          "Model, checkpoint, activations or routing file, or a .npy of [tokens, layers, k]")
      ->required();
  inspect.add_flag("--no-verify", o.no_verify, "List only, read no weights");
}

CLI::App& add_diff(CLI::App& app, DiffOptions& o) {
  CLI::App& diff = *app.add_subcommand("diff", "Compare the activations of two runs");
  diff.add_option("a", o.a, "Activations file")->required();
  diff.add_option("b", o.b, "Another, of the same requests")->required();
  diff.add_option("--tolerance", o.tolerance, "Largest difference that is no difference")
      ->check(CLI::Range(0.0, 1e30))
      ->capture_default_str();
  return diff;
}

CLI::App& add_join(CLI::App& app, JoinOptions& o) {
  CLI::App& join =
      *app.add_subcommand("join", "Make the results of the parts that runs with --shard left");
  join.add_option("--output", o.output, "Results to write: --output of those runs")->required();
  join.add_option("--shards", o.shards, "How many shards; 0: as the parts' names say")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  join.add_flag("--keep-parts", o.keep_parts, "Do not remove the parts afterwards");
  return join;
}

CLI::App& add_tokenize(CLI::App& app, TokenizeOptions& o) {
  CLI::App& tokenize =
      *app.add_subcommand("tokenize", "Show what a model's tokenizer makes of a text");
  tokenize.add_option("model", o.model, "Model file, or folder with a tokenizer")->required();
  tokenize.add_option("--input", o.input, "File with the text, or with --detokenize the ids")
      ->capture_default_str();
  CLI::Option* back =
      tokenize.add_flag("--detokenize", o.detokenize, "From ids ([1, 2, 3]) to text");
  tokenize
      .add_flag("--chat-template", o.chat_template,
                "Instead: the model's chat template and special tokens, as JSON")
      ->excludes(back);
  tokenize.add_flag("--json-lines", o.json_lines, "Each line is a JSON string, or a list of ids");
  tokenize.add_flag("--pieces", o.pieces, "A line for each token, with its text")->excludes(back);
  tokenize.add_flag("--no-special-tokens", o.no_special_tokens,
                    "Add none around a text; leave them out of one");
  return tokenize;
}

/// What an option alone cannot say.
void check_run(const CLI::App& run, const RunOptions& o) {
  interval_of(o.checkpoint_every);
  if (run.count("--shard") > 0) shard_of(o.shard);
  if (o.resume && !o.dump_activations.empty()) {
    throw UsageError(
        "--dump-activations: a resumed run does not compute all tokens; leave one of "
        "it and --resume away");
  }
  if (run.count("--shard") > 0 && o.replay_routing.ends_with(".npy")) {
    throw UsageError(
        "--replay-routing: a .npy is one list of tokens, and a shard does not know which are its "
        "own; give a recorded file, or leave --shard away");
  }
  if (run.count("--checkpoint-every") > 0 && o.checkpoint_dir.empty()) {
    throw UsageError("--checkpoint-every: there is no --checkpoint-dir to write to");
  }
  check_run_balance(run, o);
}

CLI::App& add_whole_run(CLI::App& app, RunOptions& o) {
  CLI::App& run = *app.add_subcommand("run", "Generate or score (start it under mpirun)");
  add_run(run, o);
  add_run_layout(run, o);
  add_run_balance(run, o);
  add_run_files(run, o);
  add_run_sizes(run, o);
  add_run_prompts(run, o);
  add_run_updates(run, o);
  return run;
}

}  // namespace

CommandLine parse_command_line(int argc, const char* const* argv) {
  CommandLine line;
  CLI::App app(
      "Atoll runs Mixture-of-Experts transformer inference as an MPI job: one rank per GPU or per "
      "share of a CPU, each owning its share of the experts of every MoE layer.",
      "atoll");
  app.set_version_flag("--version", "atoll", "Version, build, libraries and features");
  app.require_subcommand(1);
  app.option_defaults()->take_last();

  CLI::App& run = add_whole_run(app, line.run);
  CLI::App& init = add_init(app, line.init);
  CLI::App& import = add_import(app, line.import);
  add_inspect(app, line.inspect);
  CLI::App& diff = add_diff(app, line.diff);
  CLI::App& join = add_join(app, line.join);
  CLI::App& tokenize = add_tokenize(app, line.tokenize);
  CLI::App& layout = add_layout(app, line.layout);
  CLI::App& place = add_place(app, line.place);
  CLI::App& plan = add_plan(app, line.plan);
  CLI::App& check = add_check(app, line.check);

  try {
    std::vector<std::string> arguments = with_config_files(argc, argv);
    require_known_command(app, arguments);
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
    app.parse(std::move(arguments));
  } catch (const CLI::CallForHelp&) {
    const auto parsed = app.get_subcommands();
    line.text = parsed.empty() ? app.help() : parsed.front()->help(app.get_name());
    return line;
  } catch (const CLI::CallForVersion& version) {
    line.text = std::string(version.what()) + "\n";
    line.version = true;
    return line;
  } catch (const CLI::ParseError& error) {
    throw UsageError(fmt::format("{}; see atoll --help", error.what()));
  }
  if (run.parsed()) check_run(run, line.run);
  if (init.parsed() && line.init.preset.empty() && line.init.config.empty()) {
    throw UsageError("init: which model? Give --preset or --config; see atoll init --help");
  }
  if (!(line.run.deadline >= 0) || !(line.init.deadline >= 0))
    throw UsageError("--deadline: not a number of seconds");
  line.command = run.parsed()        ? Command::run
                 : init.parsed()     ? Command::init
                 : import.parsed()   ? Command::import
                 : diff.parsed()     ? Command::diff
                 : join.parsed()     ? Command::join
                 : tokenize.parsed() ? Command::tokenize
                 : layout.parsed()   ? Command::layout
                 : place.parsed()    ? Command::place
                 : plan.parsed()     ? Command::plan
                 : check.parsed()    ? Command::check
                                     : Command::inspect;
  return line;
}

}  // namespace atl
