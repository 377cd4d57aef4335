#pragma once
// The seam between the driver and one rank's arithmetic.
//
// A Backend owns the weights, the KV cache and its queues. Its operations are coarse (one per
// schedule step) and asynchronous: each enqueues and returns an Event at once. Operations of one
// chunk run in the order in which they were enqueued, and so do attention's of all chunks; the CPU
// has one queue for everything. The thread that owns MPI calls these functions and does no
// arithmetic itself.

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "compute/device_memory.hpp"
#include "compute/sampling.hpp"
#include "compute/types.hpp"
#include "compute/weights.hpp"

namespace atl::compute {

/// Ticket of an enqueued operation; tickets complete in increasing order where in_order() says so.
using Event = std::uint64_t;

/// When an operation, or its part on one stream, ran; in seconds of the steady clock.
struct Interval {
  double begin = 0;
  double end = 0;
  int stream = 0;            ///< index into stream_names()
  bool only_copies = false;  ///< moves data, computes nothing
};

/// Rows [first_row, first_row + num_rows) of a chunk are consecutive positions of one sequence,
/// the first at first_position. `pages` lists the KV pages of that sequence in order of position.
/// Positions below `prompt` are those of its prompt, the later ones were generated: latent
/// attention computes the two in different ways, the same for a token whatever segments it comes
/// in.
struct Segment {
  std::int32_t first_row = 0;
  std::int32_t num_rows = 0;
  std::int32_t first_position = 0;
  const std::int32_t* pages = nullptr;
  std::int32_t prompt = std::numeric_limits<std::int32_t>::max();
};

/// Consecutive rows of one local expert: read from `in`, results written to `out` (both [rows, H]).
struct RowBlock {
  std::int32_t local_expert = 0;
  std::int32_t num_rows = 0;
  const void* in = nullptr;
  void* out = nullptr;
};

/// Where rows of a chunk go from route.
enum class RouteTo : std::uint8_t {
  experts,  ///< straight to the ranks that hold their experts
  nodes,    ///< to the experts' nodes, each once, to be forwarded there
};

/// Rows that a rank forwards inside its node: its own ones, which lie among those it packed for
/// nodes, and those that arrived.
struct NodeRows {
  std::int64_t own_first = 0;  ///< in across_send
  std::int64_t own_rows = 0;
  std::int64_t own_return_first = 0;  ///< in across_return
  std::int64_t arrived = 0;           ///< in across_recv, from the first on
  std::int64_t arrived_returns = 0;   ///< in across_done, from the first on
};

/// Rows of the experts that several ranks share.
struct ExpertRoom {
  std::int64_t all = 0;  ///< of all members
  std::int64_t own = 0;

  bool operator==(const ExpertRoom&) const = default;
};

/// What a router would choose, given instead: experts [T, top_k] by their number in the model, each
/// token's different from one another, in the order in which their rows are summed. Without weights
/// [T, top_k] each gets the probability that the router gives it, rescaled where the model rescales
/// those of experts that it chose itself.
struct ForcedChoices {
  const std::int32_t* experts = nullptr;  ///< null: the router chooses
  const float* weights = nullptr;
};

/// Added to the router's scores where experts are chosen; the weights that these get are the
/// scores alone.
struct ChoiceOffsets {
  const float* tables = nullptr;               ///< [num_tables, experts]; null: none
  const std::int32_t* table_of_row = nullptr;  ///< [T]
  int num_tables = 0;
};

/// One micro-batch on its way through the layers: its input and the buffers that MPI reads and
/// writes. Activations in between belong to the backend. Rows of `dispatch_send` are grouped by
/// the place of their expert's replica (see ExpertPlaces), rows of `across_send` by node; inside a
/// group they keep token order. The buffers of rows lie in the memory of the backend's
/// device_memory(), where it has one. Those named `across` are there only with
/// BackendOptions::across.
class Chunk {
 public:
  virtual ~Chunk() = default;

  std::span<const std::int32_t> tokens;  ///< [T], T <= max_tokens; may be empty
  std::span<const Segment> segments;     ///< cover rows 0..T-1 in order; 0..all_rows-1 where shared
  /// Choices that take the router's place in the next route(); they live until that completes.
  ForcedChoices forced;
  /// For the next route(), where it chooses; they live until that completes.
  ChoiceOffsets offsets;

  // After route, and until the next one:
  std::span<const std::int32_t> packed_counts;  ///< [places] of the layer: rows for each
  std::span<const std::int32_t> node_rows;      ///< [nodes]: tokens that go there
  /// [nodes]: rows that come back from there by RouteTo::nodes: one for a token whose experts are
  /// all on that node, which adds them up, else one for each of them.
  std::span<const std::int32_t> node_returns;

  void* dispatch_send = nullptr;      ///< [T * top_k, H], packed by route; or what regroup forwards
  void* combine_recv = nullptr;       ///< the same rows' results, read by merge, or by fold
  void* dispatch_recv = nullptr;      ///< [receive_capacity, H], rows from other ranks
  void* combine_send = nullptr;       ///< [receive_capacity, H], their results
  std::int64_t receive_capacity = 0;  ///< rows

  /// [T, H] in float32: the residual stream, for who takes it to another rank between two layers.
  float* x = nullptr;

  // Where several ranks share attention (Part::attention), with N members, h = heads / N *
  // head_dim, and A = all_rows. What a rank has itself of a buffer that others send to, its
  // arithmetic writes there.
  std::int64_t all_rows = 0;       ///< of all members: what `segments` cover
  std::int64_t first_own_row = 0;  ///< `tokens` are [first_own_row, first_own_row + T) of them
  void* normed = nullptr;          ///< [A, H]: own rows from AttentionPart::norm, sent to all
  /// What this pass goes by: the share's OutputCut. By OutputCut::either, rows or columns, which
  /// the caller says with the tokens, alike for all members.
  OutputCut output = OutputCut::columns;
  float* head_sums = nullptr;   ///< [N, A, sums_per_member()]: QkNorm::whole_row, see project
  void* heads_send = nullptr;   ///< [A, h], from attend; columns and either: beside heads_recv,
                                ///< where A says
  void* heads_recv = nullptr;   ///< columns: [N, A, h], own part: attend's; rows: [N, T, h], own
                                ///< part: not there
  void* output_send = nullptr;  ///< columns: [A, H / N]; sums: [A, H], by `sum` in float32
  void* output_recv = nullptr;  ///< [N, T, H / N], or [N, T, H] likewise; own part: not there

  // Where several ranks share experts (Part::expert_share), with N members and R = all_expert_rows,
  // of which n are own ones: those of the blocks, in their order.
  std::int64_t all_expert_rows = 0;   ///< of all members, one member's after the other's
  std::int64_t first_expert_row = 0;  ///< where own ones begin among them
  void* expert_rows = nullptr;        ///< [R, H]: own rows from ExpertPart::collect, sent to all
  void* inner_rows = nullptr;         ///< [N, R, I / N]: own part from ExpertPart::up, sent to all
  void* down_send = nullptr;          ///< [R, H / N], from ExpertPart::down
  void* down_recv = nullptr;          ///< [N, n, H / N]; own part: not there

  void* across_send = nullptr;    ///< [T * min(top_k, nodes)], rows with tails (across_row)
  void* across_recv = nullptr;    ///< rows with tails from other nodes
  void* across_done = nullptr;    ///< [.., H], their results, as they go back
  void* across_return = nullptr;  ///< [T * top_k, H], results of this rank's rows

  /// Grows dispatch_recv and combine_send to at least `rows` rows (by doubling, on a device up to
  /// BackendOptions::most_receive_rows); contents are lost.
  /// On a device this waits for everything under way there.
  virtual void reserve_receive(std::int64_t rows) = 0;
  /// The same for the buffers of ranks that share experts: for R and for n rows.
  virtual void reserve_experts(const ExpertRoom& room) = 0;
  /// The same for across_recv (`rows.arrived`) and across_done, and for `forwarded` rows of
  /// dispatch_send and combine_recv.
  virtual void reserve_across(const NodeRows& rows, std::int64_t forwarded) = 0;
};

/// Parts of attention and of experts between which rows may move (where several ranks share heads,
/// or an expert's inner columns): what one part leaves in the chunk, the next takes. Together they
/// are `all`, bit by bit (but by sums of OutputCut); that is faster where nothing moves.
enum class AttentionPart : std::uint8_t {
  all,
  norm,     ///< normed = RMSNorm(x), of own rows
  project,  ///< q, k, v rows of own heads = Wqkv * normed, of all rows; by QkNorm::whole_row also
            ///< head_sums: of each own q head, then of each own KV head, the sum of squares
  attend,   ///< rotates them, appends k and v to the cache, leaves the heads' outputs
  output,   ///< rows: x += Wo * those of own rows; else output_send = own columns, or summands
  add,      ///< x += what output_send and output_recv have for own rows; nothing by rows
};
/// Ranks that share experts take every part: `collect` and `write` with blocks of own rows, `up`
/// and `down` with blocks of all members', whose `in` is in expert_rows and whose `out` is not
/// looked at. Else there are only `up` and `down`, and all blocks are own.
enum class ExpertPart : std::uint8_t {
  all,
  collect,  ///< expert_rows = `in` of the blocks
  up,       ///< the blocks' inner rows, after the activation; shared: own columns, in inner_rows
  down,     ///< `out` of the same blocks; after `up` of this chunk and layer; shared: down_send
  write,    ///< `out` of the blocks = what down_send and down_recv have for them
};

/// How a backend is set up, fixed before the first weight is loaded.
struct BackendOptions {
  ModelShape shape;
  DType dtype = DType::bfloat16;  ///< of activations but x, KV cache and GEMM operands
  Part part;                      ///< what this rank has of the model
  int num_threads = 1;
  int page_tokens = 64;        ///< tokens per KV page
  std::int64_t num_pages = 0;  ///< KV pages this rank holds, all layers each
  int max_chunk_tokens = 0;
  int num_chunks = 1;  ///< that will be made, for the plan of the memory
  /// [num_chunks]: tokens that each has room for, in the order of make_chunk(); empty:
  /// max_chunk_tokens.
  std::vector<int> chunk_tokens;
  bool split_experts = false;  ///< ExpertPart::up and down will be used apart
  bool across = false;         ///< RouteTo::nodes will be used
  /// Rows that a chunk can receive from the start, where its rows lie on a device; in host memory
  /// buffers always grow as they are needed.
  std::int64_t receive_rows = 0;
  ExpertRoom expert_room;  ///< the same, where several ranks share experts
  /// Rows that a chunk can ever receive: buffers on a device do not double past them.
  std::int64_t most_receive_rows = std::numeric_limits<std::int64_t>::max();

  /// Rows of a chunk's attention, at most: those of all members that share it.
  std::int64_t most_attention_rows() const {
    return std::int64_t{max_chunk_tokens} * part.attention.members;
  }
};

/// The options as the chunk of this number, from 0 again after num_chunks, sees them.
BackendOptions options_of_chunk(const BackendOptions& options, int index);

class Backend {
 public:
  virtual ~Backend() = default;

  /// For the report, e.g. "cpu: oneDNN 2.6, bfloat16 GEMMs (avx512_core_bf16), 2 threads".
  virtual std::string description() const = 0;

  /// Copies (and packs) one weight; `tensor` may be freed afterwards. `layer` is -1 outside the
  /// layers, `local_expert` outside experts. Throws Error when this rank's part of the model has no
  /// such weight, or one of another shape.
  virtual void load_weight(Weight weight, int layer, int local_expert,
                           const HostTensor& tensor) = 0;

  /// Says that all weights are there; prepares what the first pass would otherwise create. After
  /// it, with no operation under way, other weights may come in place of these: all of them, each
  /// by load_weight(), then finish_loading() again. The KV cache stays, and so does the memory that
  /// is held. Throws Error when one has not come.
  virtual void finish_loading() = 0;

  virtual std::unique_ptr<Chunk> make_chunk() = 0;

  // Steps, named as the schedule's. x [T, H] is the residual stream, in float32 and kept in the
  // chunk. What is added to it is rounded to options.dtype first: so it may travel as rows do.
  /// The chunk's first operation. x = embedding[tokens]; where the part begins with a later layer,
  /// x is there already.
  virtual Event embed(Chunk& chunk) = 0;
  /// x += Attention(RMSNorm(x)); fills KV
  virtual Event attention(Chunk& chunk, int layer, AttentionPart part = AttentionPart::all) = 0;
  virtual Event mlp(Chunk& chunk, int layer) = 0;  ///< x += Mlp(RMSNorm(x)), dense layers
  /// x += SharedExpert(RMSNorm(x)), weighted where ModelShape::shared_gate says: after route(),
  /// which normalises the same x, and before merge().
  virtual Event shared_expert(Chunk& chunk, int layer) = 0;
  /// Router, counts, and rows packed: into dispatch_send, or across_send.
  virtual Event route(Chunk& chunk, int layer, RouteTo to = RouteTo::experts) = 0;
  /// dispatch_send = the rows that `rows` says, once for each of their experts on this node,
  /// grouped by place.
  virtual Event regroup(Chunk& chunk, int layer, const NodeRows& rows) = 0;
  /// Blocks are sorted by local_expert; the span and what it points to live until completion.
  virtual Event experts(Chunk& chunk, int layer, std::span<const RowBlock> blocks,
                        ExpertPart part = ExpertPart::all) = 0;
  /// What goes back for the rows of the last regroup, from combine_recv: the weighted sum where all
  /// of a row's experts are on this node, else each of their rows, in falling order of weight. To
  /// across_return for own rows, else to across_done.
  virtual Event fold(Chunk& chunk, int layer, const NodeRows& rows) = 0;
  /// x += weighted sum of combine_recv, or of across_return, as the last route says.
  virtual Event merge(Chunk& chunk, int layer) = 0;

  /// out = for each row i the next token after row rows[i], chosen from
  /// lm_head · RMSNorm(x[rows[i]]) (float32) as how[i] says, followed by the how[i].tops most
  /// probable ones; -1 where one of the row's logits is not finite. All three, and the changes that
  /// `how` points to, live until completion.
  virtual Event sample(Chunk& chunk, std::span<const std::int32_t> rows,
                       std::span<const SamplingRequest> how, SampledToken* out) = 0;

  /// logits [rows, vocab] (float32) = lm_head · RMSNorm(x[rows]): for checks, which want all of
  /// them on the host.
  virtual Event logits(Chunk& chunk, std::span<const std::int32_t> rows, float* logits) = 0;

  /// out[i].logprob = log softmax(lm_head · RMSNorm(x[rows[i]]))[targets[i]], in float32; NaN where
  /// one of the row's logits is not finite.
  virtual Event logprobs(Chunk& chunk, std::span<const std::int32_t> rows,
                         std::span<const std::int32_t> targets, ScoredToken* out) = 0;

  /// Copies x [T, H], as it is then, to host memory.
  virtual Event save_x(const Chunk& chunk, float* x) = 0;
  /// Copies what the last route() of the chunk chose to host memory: experts [T, top_k] by their
  /// number in the model, in falling weight unless they were forced or offsets had a part in it,
  /// and their weights. `given_up` [T], where it is not null, after a route() with offsets: the
  /// weights of those that would have been chosen without, less the weights of those that were,
  /// both as scores. Before the chunk's next route().
  virtual Event save_choices(const Chunk& chunk, std::int32_t* experts, float* weights,
                             float* given_up = nullptr) = 0;
  /// Copies the keys and values of positions [first_position, first_position + num_positions) of
  /// one sequence, which lie in `pages` (of the sequence, in order of position), to host memory,
  /// each as [num_positions, kv_heads, head_dim] in options.dtype: the same bytes whatever the
  /// backend's own layout. `pages` and the memory live until completion.
  virtual Event save_kv(int layer, std::span<const std::int32_t> pages, int first_position,
                        int num_positions, void* keys, void* values) = 0;
  /// The way back: what save_kv gave becomes the cache of these positions.
  virtual Event load_kv(int layer, std::span<const std::int32_t> pages, int first_position,
                        int num_positions, const void* keys, const void* values) = 0;

  // Experts may change their ranks while a run goes on: their bytes, as a backend keeps them, are
  // alike on all ranks with the same options.
  /// Of one expert of this layer; 0 where the rank has none.
  virtual std::int64_t expert_bytes(int layer) const = 0;
  /// Copies an expert out. Operations may be under way.
  virtual void read_expert(int layer, int local_expert, std::span<std::byte> bytes) = 0;
  /// With no operation under way: what another rank read takes the place of an expert.
  virtual void write_expert(int layer, int local_expert, std::span<const std::byte> bytes) = 0;
  /// With no operation under way: `experts` are those of the rank now, as many as before, by their
  /// local numbers. No other layer may have the same places.
  virtual void place_experts(int layer, std::span<const std::int32_t> experts,
                             const ExpertPlaces& places) = 0;

  /// Lets everything enqueued so far run beside the calling thread.
  virtual void start() = 0;
  /// True once the operation has completed. Rethrows what an operation threw.
  virtual bool done(Event event) = 0;
  /// Starts, then sleeps until the operation has completed or `timeout_us` has passed; returns
  /// done(event).
  virtual bool wait(Event event, int timeout_us) = 0;
  /// Returns when the operation has completed. For a caller with nothing else to do meanwhile: what
  /// has not been started may run on the calling thread, which saves handing it over and back.
  virtual void finish(Event event) = 0;
  /// Returns when nothing that was enqueued reads or writes memory any more, whether it failed or
  /// not: for a caller whose memory goes, and that will not ask for its operations. What has not
  /// been started may be left undone.
  virtual void settle() noexcept {}
  /// When a completed operation ran; kept for the most recent 4096 operations.
  virtual Interval interval(Event event) const = 0;
  /// The same by stream, into `parts`; returns how many there are (at most max_parts).
  static constexpr std::size_t max_parts = 3;
  virtual std::size_t intervals(Event event, std::span<Interval> parts) const {
    parts[0] = interval(event);
    return 1;
  }
  /// Names of the streams that operations run on.
  virtual std::span<const char* const> stream_names() const {
    static constexpr const char* names[] = {"compute"};
    return names;
  }
  /// Whether operations complete in the order of their tickets.
  virtual bool in_order() const { return true; }

  /// Where the rows of chunks lie and how they get to the host; null: they are in host memory.
  virtual DeviceMemory* device_memory() { return nullptr; }

  /// Bytes held, by kind, for the report.
  struct Memory {
    std::int64_t weights = 0;
    std::int64_t kv_cache = 0;
    std::int64_t buffers = 0;
  };
  virtual Memory memory() const = 0;
};

/// The CPU backend: oneDNN GEMMs and OpenMP kernels on a worker thread.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

}  // namespace atl::compute
