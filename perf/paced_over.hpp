#pragma once
// A backend around another: operations give the same results, and take as long as on a machine of
// stated rates, one after the other on a clock of their own. On a machine with fewer cores than
// ranks an idle rank's core serves another, so that skew, bubbles and stragglers vanish unless
// arithmetic is paced so.

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "compute/backend.hpp"
#include "compute/clock.hpp"
#include "compute/error.hpp"
#include "perf/machine_pace.hpp"

namespace atl::perf {

class PacedOver : public compute::Backend {
 public:
  PacedOver(std::unique_ptr<compute::Backend> backend, const compute::BackendOptions& options,
            const MachineRates& rates)
      : real_(std::move(backend)), pace_(rates, options) {
    require(real_->in_order(), "operations that run beside one another cannot be paced");
  }

  std::string description() const override { return "paced, over " + real_->description(); }
  void load_weight(compute::Weight weight, int layer, int local_expert,
                   const HostTensor& tensor) override {
    real_->load_weight(weight, layer, local_expert, tensor);
  }
  void finish_loading() override { real_->finish_loading(); }
  void settle() noexcept override { real_->settle(); }
  std::unique_ptr<compute::Chunk> make_chunk() override { return real_->make_chunk(); }

  compute::Event embed(compute::Chunk& chunk) override { return take(real_->embed(chunk), 0); }
  compute::Event attention(compute::Chunk& chunk, int layer, compute::AttentionPart part) override {
    return take(real_->attention(chunk, layer, part), pace_.attention(chunk, part));
  }
  compute::Event mlp(compute::Chunk& chunk, int layer) override {
    return take(real_->mlp(chunk, layer), pace_.mlp(chunk));
  }
  compute::Event shared_expert(compute::Chunk& chunk, int layer) override {
    return take(real_->shared_expert(chunk, layer), pace_.mlp(chunk));
  }
  compute::Event route(compute::Chunk& chunk, int layer, compute::RouteTo to) override {
    return take(real_->route(chunk, layer, to), pace_.route(chunk));
  }
  compute::Event regroup(compute::Chunk& chunk, int layer, const compute::NodeRows& rows) override {
    return take(real_->regroup(chunk, layer, rows), 0);
  }
  compute::Event experts(compute::Chunk& chunk, int layer,
                         std::span<const compute::RowBlock> blocks,
                         compute::ExpertPart part) override {
    return take(real_->experts(chunk, layer, blocks, part), pace_.experts(blocks, part));
  }
  compute::Event fold(compute::Chunk& chunk, int layer, const compute::NodeRows& rows) override {
    return take(real_->fold(chunk, layer, rows), 0);
  }
  compute::Event merge(compute::Chunk& chunk, int layer) override {
    return take(real_->merge(chunk, layer), 0);
  }
  compute::Event sample(compute::Chunk& chunk, std::span<const std::int32_t> rows,
                        std::span<const SamplingRequest> how, SampledToken* out) override {
    return take(real_->sample(chunk, rows, how, out), pace_.head(rows.size()));
  }
  compute::Event logits(compute::Chunk& chunk, std::span<const std::int32_t> rows,
                        float* logits) override {
    return take(real_->logits(chunk, rows, logits), pace_.head(rows.size()));
  }
  compute::Event logprobs(compute::Chunk& chunk, std::span<const std::int32_t> rows,
                          std::span<const std::int32_t> targets, ScoredToken* out) override {
    return take(real_->logprobs(chunk, rows, targets, out), pace_.head(rows.size()));
  }
  compute::Event save_x(const compute::Chunk& chunk, float* x) override {
    return take(real_->save_x(chunk, x), 0);
  }
  compute::Event save_choices(const compute::Chunk& chunk, std::int32_t* experts, float* weights,
                              float* given_up) override {
    return take(real_->save_choices(chunk, experts, weights, given_up), 0);
  }
  compute::Event save_kv(int layer, std::span<const std::int32_t> pages, int first, int count,
                         void* keys, void* values) override {
    return take(real_->save_kv(layer, pages, first, count, keys, values), 0);
  }
  compute::Event load_kv(int layer, std::span<const std::int32_t> pages, int first, int count,
                         const void* keys, const void* values) override {
    return take(real_->load_kv(layer, pages, first, count, keys, values), 0);
  }

  std::int64_t expert_bytes(int layer) const override { return real_->expert_bytes(layer); }
  void read_expert(int layer, int local_expert, std::span<std::byte> bytes) override {
    real_->read_expert(layer, local_expert, bytes);
  }
  void write_expert(int layer, int local_expert, std::span<const std::byte> bytes) override {
    real_->write_expert(layer, local_expert, bytes);
  }
  void place_experts(int layer, std::span<const std::int32_t> experts,
                     const compute::ExpertPlaces& places) override {
    real_->place_experts(layer, experts, places);
  }

  void start() override { real_->start(); }
  bool done(compute::Event event) override {
    return real_->done(place(event).real) && now_seconds() >= place(event).end;
  }
  bool wait(compute::Event event, int timeout_us) override {
    const double until = now_seconds() + timeout_us * 1e-6;
    if (real_->wait(place(event).real, timeout_us)) sleep_until(std::min(until, place(event).end));
    return done(event);
  }
  void finish(compute::Event event) override {
    real_->finish(place(event).real);
    sleep_until(place(event).end);
  }
  compute::Interval interval(compute::Event event) const override {
    const Place& at = places_[event % most_places];
    return {at.begin, std::max(at.end, real_->interval(at.real).end)};
  }
  compute::DeviceMemory* device_memory() override { return real_->device_memory(); }
  Memory memory() const override { return real_->memory(); }

 protected:
  compute::Backend& real() { return *real_; }

 private:
  static constexpr std::size_t most_places = 4096;
  struct Place {
    compute::Event real = 0;
    double begin = 0;
    double end = 0;
  };

  Place& place(compute::Event event) { return places_[event % most_places]; }

  compute::Event take(compute::Event real, double seconds) {
    const double begin = std::max(now_seconds(), free_at_);
    free_at_ = begin + seconds;
    const compute::Event event = next_++;
    place(event) = {real, begin, free_at_};
    return event;
  }

  static void sleep_until(double time) {
    const double left = time - now_seconds();
    if (left > 0) std::this_thread::sleep_for(std::chrono::duration<double>(left));
  }

  std::unique_ptr<compute::Backend> real_;
  MachinePace pace_;
  std::vector<Place> places_ = std::vector<Place>(most_places);
  compute::Event next_ = 1;
  double free_at_ = 0;  // when what is enqueued would be done
};

}  // namespace atl::perf
