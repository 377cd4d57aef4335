// One batch of requests through libllama, timed by phase: what llama.cpp's and ik_llama.cpp's
// servers do with continuous batching, without HTTP. Compiles against both (-DATOLL_PEER_IK for the
// second):
//
//   llama_driver --model M.gguf --requests FILE [--threads 2] [--ubatch 512] [--flash on|off]
//                [--repack on|off]
//
// FILE has a line a request: how many tokens to generate, then the prompt's token ids. Prints one
// line of JSON: seconds and tokens of prefill (until every request has its first token) and decode
// (all after that), the tokens and their log-probabilities, peak memory. Weights are read into
// memory before the clock starts, and a short pass of one request warms up. Choosing the greedy
// token is timed, the log-probabilities are not: the engines have no need of them.

#include <llama.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Options {
  std::string model, requests;
  int threads = 2;
  int ubatch = 512;  // llama.cpp's default
  bool flash = true;
  bool repack = false;
};

struct Request {
  int max_tokens = 0;
  std::vector<llama_token> prompt, tokens;
  std::vector<double> logprobs;
};

struct Phase {
  double seconds = 0;
  long tokens = 0;
};

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(what);
}

Options parse(int argc, char** argv) {
  Options options;
  const auto on = [](const std::string& name, const std::string& value) {
    if (value != "on" && value != "off") fail(name + " is \"" + value + "\"; say on or off");
    return value == "on";
  };
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) fail(name + " has no value");
    const std::string value = argv[i + 1];
    if (name == "--model") {
      options.model = value;
    } else if (name == "--requests") {
      options.requests = value;
    } else if (name == "--threads") {
      options.threads = std::stoi(value);
    } else if (name == "--ubatch") {
      options.ubatch = std::stoi(value);
    } else if (name == "--flash") {
      options.flash = on(name, value);
    } else if (name == "--repack") {
      options.repack = on(name, value);
    } else {
      fail("unknown option " + name);
    }
  }
  if (options.model.empty() || options.requests.empty()) fail("give --model and --requests");
  return options;
}

std::vector<Request> read_requests(const std::string& path) {
  std::ifstream file(path);
  if (!file) fail("cannot read " + path);
  std::vector<Request> requests;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    Request request;
    if (!(words >> request.max_tokens)) fail("no number of tokens in a line of " + path);
    for (llama_token token = 0; words >> token;) request.prompt.push_back(token);
    if (request.max_tokens < 1 || request.prompt.empty()) fail("an empty request in " + path);
    requests.push_back(std::move(request));
  }
  if (requests.empty()) fail("no request in " + path);
  return requests;
}

llama_model* load(const Options& options) {
  llama_model_params params = llama_model_default_params();
#ifdef ATOLL_PEER_IK
  params.use_mmap = false;
  params.repack_tensors = options.repack;  // rows interleaved for its own GEMMs
  params.flash_attn = options.flash;
#else
  params.load_mode = LLAMA_LOAD_MODE_NONE;
  params.use_extra_bufts = options.repack;
#endif
  llama_model* model = llama_model_load_from_file(options.model.c_str(), params);
  if (model == nullptr) fail("cannot load " + options.model);
  return model;
}

constexpr int logical_batch = 2048;  // llama.cpp's default

llama_context* make_context(llama_model* model, const Options& options,
                            const std::vector<Request>& requests) {
  std::size_t longest = 0;
  for (const Request& request : requests) {
    longest =
        std::max(longest, request.prompt.size() + static_cast<std::size_t>(request.max_tokens));
  }
  llama_context_params params = llama_context_default_params();
  params.n_seq_max = static_cast<std::uint32_t>(requests.size());
  params.n_ctx = static_cast<std::uint32_t>((longest + 255) / 256 * 256 * requests.size());
  params.n_batch = logical_batch;
  params.n_ubatch = static_cast<std::uint32_t>(options.ubatch);
  params.n_threads = params.n_threads_batch = options.threads;
  params.type_k = params.type_v = GGML_TYPE_F16;
#ifdef ATOLL_PEER_IK
  params.flash_attn = options.flash;
#else
  params.flash_attn_type =
      options.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.kv_unified = false;
  params.no_perf = true;
#endif
  llama_context* context = llama_init_from_model(model, params);
  if (context == nullptr) fail("cannot make a context");
  return context;
}

void forget(llama_context* context) {
#ifdef ATOLL_PEER_IK
  llama_kv_cache_clear(context);
#else
  llama_memory_clear(llama_get_memory(context), true);
#endif
}

int vocabulary(const llama_model* model) {
#ifdef ATOLL_PEER_IK
  return llama_n_vocab(model);
#else
  return llama_vocab_n_tokens(llama_model_get_vocab(model));
#endif
}

/// Runs requests; every token that comes out is the one of the greatest logit.
class Engine {
 public:
  Engine(llama_context* context, int vocabulary)
      : context_(context), vocabulary_(vocabulary), batch_(llama_batch_init(logical_batch, 0, 1)) {}
  ~Engine() { llama_batch_free(batch_); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// All prompts, until each request has its first token.
  Phase prefill(std::vector<Request>& requests) {
    Phase phase;
    for (std::size_t r = 0; r < requests.size(); ++r) {
      const std::vector<llama_token>& prompt = requests[r].prompt;
      for (std::size_t i = 0; i < prompt.size(); ++i) {
        add(prompt[i], i, r, i + 1 == prompt.size());
        if (batch_.n_tokens == logical_batch) flush(requests, phase);
      }
      phase.tokens += static_cast<long>(prompt.size());
    }
    flush(requests, phase);
    return phase;
  }

  /// Steps of one token for every request that wants more.
  Phase decode(std::vector<Request>& requests) {
    Phase phase;
    while (true) {
      for (std::size_t r = 0; r < requests.size(); ++r) {
        const Request& request = requests[r];
        const std::size_t had = request.tokens.size();
        if (had >= static_cast<std::size_t>(request.max_tokens)) continue;
        add(request.tokens.back(), request.prompt.size() + had - 1, r, true);
      }
      if (batch_.n_tokens == 0) return phase;
      phase.tokens += batch_.n_tokens;
      flush(requests, phase);
    }
  }

 private:
  void add(llama_token token, std::size_t position, std::size_t request, bool wants_logits) {
    const int i = batch_.n_tokens++;
    batch_.token[i] = token;
    batch_.pos[i] = static_cast<llama_pos>(position);
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = static_cast<llama_seq_id>(request);
    batch_.logits[i] = wants_logits ? 1 : 0;
  }

  void flush(std::vector<Request>& requests, Phase& phase) {
    if (batch_.n_tokens == 0) return;
    const double begin = now();
    const int status = llama_decode(context_, batch_);
    if (status != 0) fail("llama_decode says " + std::to_string(status));
    llama_synchronize(context_);
    std::vector<int> rows;
    for (int i = 0; i < batch_.n_tokens; ++i) {
      if (batch_.logits[i] == 0) continue;
      const float* logits = llama_get_logits_ith(context_, i);
      const auto best = std::max_element(logits, logits + vocabulary_) - logits;
      requests[static_cast<std::size_t>(batch_.seq_id[i][0])].tokens.push_back(
          static_cast<llama_token>(best));
      rows.push_back(i);
    }
    phase.seconds += now() - begin;
    for (const int i : rows) {
      Request& request = requests[static_cast<std::size_t>(batch_.seq_id[i][0])];
      request.logprobs.push_back(logprob(llama_get_logits_ith(context_, i), request.tokens.back()));
    }
    batch_.n_tokens = 0;
  }

  double logprob(const float* logits, llama_token token) const {
    double sum = 0;
    for (int i = 0; i < vocabulary_; ++i) sum += std::exp(double{logits[i]} - logits[token]);
    return -std::log(sum);
  }

  llama_context* context_;
  int vocabulary_;
  llama_batch batch_;
};

/// A short pass of the first request, so that threads are awake and buffers touched. Of one only:
/// ik_llama.cpp's FlashAttention aborts where a pass holds several requests, which a prefill of
/// long prompts may never do.
void warm_up(Engine& engine, llama_context* context, const std::vector<Request>& requests) {
  std::vector<Request> first(requests.begin(), requests.begin() + 1);
  first[0].prompt.resize(std::min<std::size_t>(first[0].prompt.size(), 256));
  first[0].max_tokens = 4;
  engine.prefill(first);
  engine.decode(first);
  forget(context);
}

/// Greatest resident set so far, bytes.
long peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stol(line.substr(6)) * 1024;
  }
  fail("/proc/self/status has no VmHWM");
}

template <typename T, typename Print>
void print_lists(const std::vector<Request>& requests, std::vector<T> Request::*list, Print print) {
  std::printf("[");
  for (std::size_t r = 0; r < requests.size(); ++r) {
    std::printf(r > 0 ? ", [" : "[");
    const std::vector<T>& values = requests[r].*list;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (i > 0) std::printf(", ");
      print(values[i]);
    }
    std::printf("]");
  }
  std::printf("]");
}

void run(const Options& options) {
  std::vector<Request> requests = read_requests(options.requests);
  llama_backend_init();
  const double begin = now();
  llama_model* model = load(options);
  llama_context* context = make_context(model, options, requests);
  const double load_seconds = now() - begin;
  {
    Engine engine(context, vocabulary(model));
    warm_up(engine, context, requests);
    const Phase prefill = engine.prefill(requests);
    const Phase decode = engine.decode(requests);
    std::printf("{\"load_s\": %.6f, \"prefill_s\": %.6f, \"prefill_tokens\": %ld, ", load_seconds,
                prefill.seconds, prefill.tokens);
    std::printf("\"decode_s\": %.6f, \"decode_tokens\": %ld, \"peak_bytes\": %ld, ", decode.seconds,
                decode.tokens, peak_memory());
  }
  std::printf("\"tokens\": ");
  print_lists(requests, &Request::tokens, [](llama_token token) { std::printf("%d", token); });
  std::printf(", \"logprobs\": ");
  print_lists(requests, &Request::logprobs, [](double value) { std::printf("%.7g", value); });
  std::printf("}\n");
  std::fflush(stdout);
  // The system takes the memory back; ik_llama.cpp's own freeing of a context takes seconds.
  std::_Exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  // Warnings and errors only: the engines say hundreds of lines of what they load.
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  try {
    run(parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llama_driver: %s\n", error.what());
    return 1;
  }
}
