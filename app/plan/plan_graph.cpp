#include "app/plan/plan_graph.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace atl {

namespace {

std::string_view short_name(DType type) {
  switch (type) {
    case DType::bfloat16:
      return "bf16";
    case DType::float16:
      return "f16";
    case DType::float32:
      return "f32";
    case DType::uint8:
      return "u8";
  }
  return "?";
}

std::int64_t sum(const std::vector<std::int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

/// Tensors of one rank's steps.
class Tensors {
 public:
  Tensors(const LayoutPricer& pricer, const PricedPasses& model, const PassLoad& load,
          const StageSteps& stage, int rank)
      : pricer_(pricer),
        model_(model),
        load_(load),
        stage_(stage),
        rank_(rank),
        shape_(*pricer.setup().shape),
        type_(short_name(pricer.setup().dtype)),
        members_(pricer.setup().job.division().tp) {}

  void set(GraphStep& graph) const {
    const auto [in, out] = of(graph.step);
    graph.in = in;
    graph.out = out;
    const StepKind kind = graph.step.kind;
    if (kind == StepKind::experts || kind == StepKind::collect) graph.expert_rows = in.rows;
  }

 private:
  using Pair = std::pair<Tensor, Tensor>;
  Tensor rows(std::string_view name, std::int64_t count, std::int64_t columns) const {
    return {name, count, columns, type_};
  }
  Tensor x(const Step& step) const {
    return {"x", own_rows(pricer_.groups(), load_, rank_, step.chunk), shape_.hidden, "f32"};
  }
  std::int64_t all_rows(const Step& step) const {
    const auto owner = static_cast<std::size_t>(pricer_.groups().group_of(Share::sequences, rank_));
    return load_.owners[owner][static_cast<std::size_t>(step.chunk)].rows;
  }

  Pair of(const Step& step) const {
    const std::int64_t own = x(step).rows;
    switch (step.kind) {
      case StepKind::receive:
        return {x(step), x(step)};
      case StepKind::forward:
        return {x(step), x(step)};
      case StepKind::embed: {
        const Tensor tokens{"tokens", own, 1, "i32"};
        return {stage_.first_layer > 0 ? x(step) : tokens, x(step)};
      }
      case StepKind::attention:
      case StepKind::mlp:
      case StepKind::shared_expert:
        return {x(step), x(step)};
      case StepKind::head: {
        const Tensor sampled{"sampled", own, 1, "i32"};
        return {x(step), sampled};
      }
      case StepKind::tokens: {
        const Tensor sampled{"sampled", own, 1, "i32"};
        const bool has_head = stage_.end_layer == shape_.num_layers;
        return {has_head ? sampled : x(step), sampled};
      }
      default:
        break;
    }
    return step.kind < StepKind::mlp ? of_attention(step) : of_experts(step);
  }

  /// Where ranks share it.
  Pair of_attention(const Step& step) const {
    const std::int64_t all = all_rows(step), own = x(step).rows;
    const std::int64_t width = shape_.heads_width();
    const int place = pricer_.groups().place_of(Share::owner, rank_);
    const auto share = compute::share_attention(shape_, members_, place, stage_.output);
    const bool by_rows = stage_.output == compute::OutputCut::rows;
    const bool sums = compute::is_sum(stage_.output);
    const Tensor normed = rows("normed", own, shape_.hidden);
    const Tensor gathered = rows("normed of all", all, shape_.hidden);
    const Tensor qkv = rows("q, k, v", all, compute::own_heads(shape_, share).qkv_width());
    const Tensor own_heads = rows("own heads", all, width / members_);
    const Tensor heads = sums      ? own_heads
                         : by_rows ? rows("heads", own, width)
                                   : rows("heads of all", all, width);
    const Tensor parts = sums ? rows("summands", all, shape_.hidden)
                              : rows("own columns", all, shape_.hidden / members_);
    const Tensor outputs = rows("attention", sums ? own * members_ : own, shape_.hidden);
    switch (step.kind) {
      case StepKind::norm:
        return {x(step), normed};
      case StepKind::gather:
        return {normed, gathered};
      case StepKind::project:
        return {gathered, qkv};
      case StepKind::head_sums:
        return {qkv, qkv};
      case StepKind::attend:
        return {qkv, own_heads};
      case StepKind::heads:
        return {own_heads, heads};
      case StepKind::output:
        return {heads, by_rows ? x(step) : parts};
      case StepKind::outputs:
        return {parts, outputs};
      default:  // add
        return {outputs, x(step)};
    }
  }

  Pair of_experts(const Step& step) const {
    const std::int64_t hidden = shape_.hidden;
    const bool flat = stage_.route == Route::flat;
    const LayerRows& routed = model_.rows_seen_by(rank_, 0, step);
    const int place = pricer_.groups().place_of(Share::exchange, rank_);
    std::int64_t to_nodes = 0, returns = 0;
    for (int node = 0; node < routed.num_nodes; ++node) {
      to_nodes += routed.node_rows_of(place, node);
      returns += routed.node_returns_of(place, node);
    }
    const auto pairs = rows("packed", x(step).rows * shape_.top_k, hidden);
    const auto for_nodes = rows("for nodes", to_nodes, hidden);
    const std::int64_t forwarded = flat ? 0 : sum(model_.forwarded(rank_, 0, step));
    const auto forward = rows("forwarded", forwarded, hidden);
    const auto& sent = flat ? pairs : forward;
    const std::int64_t held = sum(model_.rows_of_experts(rank_, 0, step));
    const auto experts = rows("experts' rows", held, hidden);
    const auto results = rows("results", held, hidden);
    const auto returned = rows("returned", sent.rows, hidden);
    const auto folded = rows("folded", returns, hidden);
    switch (step.kind) {
      case StepKind::route:
        return {x(step), flat ? pairs : for_nodes};
      case StepKind::across_counts:
        return {for_nodes, for_nodes};
      case StepKind::across_dispatch:
        return {for_nodes, rows("on this node", arrived(step, routed, place), hidden)};
      case StepKind::counts:
        return {flat ? pairs : forward, flat ? pairs : forward};
      case StepKind::regroup:
        return {rows("on this node", arrived(step, routed, place), hidden), forward};
      case StepKind::dispatch:
        return {sent, experts};
      case StepKind::experts:
        return {experts, results};
      case StepKind::combine:
        return {results, returned};
      case StepKind::fold:
        return {returned, rows("to fold back", back(step, routed, place), hidden)};
      case StepKind::across_combine:
        return {rows("to fold back", back(step, routed, place), hidden), folded};
      case StepKind::merge:
        return {flat ? returned : folded, x(step)};
      default:
        return of_holders(step, experts, results);
    }
  }

  /// Where ranks share experts.
  Pair of_holders(const Step& step, const Tensor& experts, const Tensor& results) const {
    const int division = pricer_.setup().job.division().expert_tp;
    std::int64_t all = 0;
    const int holder = pricer_.groups().group_of(Share::holder, rank_);
    for (const int member : pricer_.groups().members(Share::holder, holder)) {
      all += sum(model_.rows_of_experts(member, 0, step));
    }
    const auto collected = rows("collected", experts.rows, shape_.hidden);
    const auto shared = rows("rows of all", all, shape_.hidden);
    const auto own_inner = rows("own inner columns", all, shape_.moe_intermediate / division);
    const auto inner = rows("inner columns", all, shape_.moe_intermediate);
    const auto own_columns = rows("own columns", all, shape_.hidden / division);
    const auto columns = rows("columns of own rows", experts.rows, shape_.hidden);
    switch (step.kind) {
      case StepKind::held_counts:
        return {experts, experts};
      case StepKind::collect:
        return {experts, collected};
      case StepKind::held_rows:
        return {collected, shared};
      case StepKind::up:
        return {shared, own_inner};
      case StepKind::inner_rows:
        return {own_inner, inner};
      case StepKind::down:
        return {inner, own_columns};
      case StepKind::held_results:
        return {own_columns, columns};
      default:  // write
        return {columns, results};
    }
  }

  template <class Rows>
  std::int64_t over_senders(int place, const Rows& rows_of) const {
    const Layout& layout =
        pricer_.groups().exchange(pricer_.groups().group_of(Share::exchange, rank_));
    const int node = layout.node_of(place);
    std::int64_t sum = 0;
    for (int from = 0; from < layout.num_ranks(); ++from) {
      const bool here =
          from == place || (layout.node_of(from) != node && layout.receiver(from, node) == place);
      if (here) sum += rows_of(from, node);
    }
    return sum;
  }
  std::int64_t arrived(const Step&, const LayerRows& routed, int place) const {
    return over_senders(place, [&](int from, int node) { return routed.node_rows_of(from, node); });
  }
  std::int64_t back(const Step&, const LayerRows& routed, int place) const {
    return over_senders(place,
                        [&](int from, int node) { return routed.node_returns_of(from, node); });
  }

  const LayoutPricer& pricer_;
  const PricedPasses& model_;
  const PassLoad& load_;
  const StageSteps& stage_;
  int rank_;
  const ModelShape& shape_;
  std::string_view type_;
  int members_;
};

/// Both ends of all messages of one exchange step.
void add_transfers(const PricedPasses& model, const JobGroups& groups, PlanGraph& graph,
                   const std::vector<std::int32_t>& index_of_rank, std::size_t rank,
                   std::size_t index) {
  GraphStep& step = graph.ranks[rank].steps[index];
  const std::vector<int>& members = groups.members(step.share, step.group);
  std::vector<Message> messages;
  Step asked = step.step;
  if (step.share == Share::pipe) asked.layer = static_cast<std::int16_t>(graph.ranks[rank].stage);
  model.messages(step.share, step.group, 0, asked, messages);
  // The same step of other members lies at the same place of their schedules, but for stages.
  const auto step_of = [&](int member) -> GraphStep* {
    const auto other = static_cast<std::size_t>(
        index_of_rank[static_cast<std::size_t>(members[static_cast<std::size_t>(member)])]);
    std::vector<GraphStep>& steps = graph.ranks[other].steps;
    const StepKind receives = StepKind::receive;
    if (other != rank && (step.share == Share::pipe || step.share == Share::sequences)) {
      const StepKind wanted = step.share == Share::pipe ? receives : step.step.kind;
      const auto found = std::find_if(steps.begin(), steps.end(), [&](const GraphStep& s) {
        return s.step.kind == wanted && s.step.chunk == step.step.chunk;
      });
      return found == steps.end() ? nullptr : &*found;
    }
    return &steps[index];
  };
  for (const Message& m : messages) {
    GraphStep* from = step_of(m.from);
    GraphStep* to = step_of(m.to);
    const auto bytes = static_cast<std::int64_t>(m.bytes);
    if (from != nullptr) {
      from->sends.push_back({members[static_cast<std::size_t>(m.to)], m.rows, bytes});
    }
    if (to != nullptr) {
      to->receives.push_back({members[static_cast<std::size_t>(m.from)], m.rows, bytes});
    }
  }
}

}  // namespace

std::string text_of(const Tensor& tensor) {
  return fmt::format("{} [{}, {}] {}", tensor.name, tensor.rows, tensor.columns, tensor.type);
}

PlanGraph graph_of(const LayoutPricer& pricer, const PassLoad& load, const PassForm& form,
                   const compute::BackendOptions& room) {
  const LayoutSetup& setup = pricer.setup();
  const JobGroups& groups = pricer.groups();
  const std::vector<PassLoad> loads = {load};
  std::vector<RoutedRows> rows;
  rows.push_back(pricer.rows_of(load));
  std::vector<Schedule> schedules;
  for (int stage = 0; stage < setup.job.division().pp; ++stage) {
    schedules.push_back(pricer.schedule(stage, load.num_chunks, form));
  }
  const PricedPasses model = pricer.model(schedules.front().stage, loads, rows);
  PlanGraph graph;
  graph.num_ranks = setup.job.num_ranks();
  graph.top_k = setup.shape->top_k;
  graph.num_chunks = load.num_chunks;
  graph.overlapped = setup.overlap;
  std::vector<std::int32_t> index_of_rank(static_cast<std::size_t>(graph.num_ranks), -1);
  for (const int rank : groups.members(Share::network, 0)) {
    index_of_rank[static_cast<std::size_t>(rank)] = static_cast<std::int32_t>(graph.ranks.size());
    RankGraph& added = graph.ranks.emplace_back();
    added.rank = rank;
    added.stage = setup.job.stage_of(rank);
    added.room = {room.max_chunk_tokens, std::int64_t{room.max_chunk_tokens} * setup.shape->top_k,
                  room.most_receive_rows};
    const Schedule& schedule = schedules[static_cast<std::size_t>(added.stage)];
    const Tensors tensors(pricer, model, load, schedule.stage, rank);
    for (const Step& step : schedule.steps) {
      GraphStep& planned = added.steps.emplace_back();
      planned.step = step;
      if (is_exchange(step.kind)) {
        planned.share = share_of(step.kind, schedule.stage.route);
        planned.group = groups.group_of(planned.share, rank);
      }
      tensors.set(planned);
    }
  }
  for (std::size_t r = 0; r < graph.ranks.size(); ++r) {
    for (std::size_t i = 0; i < graph.ranks[r].steps.size(); ++i) {
      const GraphStep& step = graph.ranks[r].steps[i];
      if (!step.exchange() || step.step.kind == StepKind::receive) continue;
      const std::vector<int>& members = groups.members(step.share, step.group);
      // Of each group's exchange once; stages forward each for itself.
      const bool last = step.share == Share::sequences
                            ? graph.ranks[r].stage == setup.job.division().pp - 1 &&
                                  groups.place_of(Share::owner, graph.ranks[r].rank) == 0
                            : members.front() == graph.ranks[r].rank;
      if (step.share == Share::pipe || last) {
        add_transfers(model, groups, graph, index_of_rank, r, i);
      }
    }
  }
  return graph;
}

}  // namespace atl
