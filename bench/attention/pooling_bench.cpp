/// Poolers at production shapes, D = 64, 4 heads: pooling by attention, resampling, fusion of modalities, additive attention.
///
///     taskset -c 1 build/bench/bench/recops_bench_attention_pooling
///
/// Users have L rows each. Flops are those of the plain form (keys and values projected), so that of_peak may pass what the machine can do.
/// Peer: `torch` the same on padded batches, the faster of eager and traced.
#include <recops/attention/additive_pool.hpp>
#include <recops/attention/fq_former.hpp>
#include <recops/attention/pma.hpp>
#include <recops/attention/query_resampler.hpp>

#include <memory>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index width = 64;

struct Data {
  Matrix<float> x, y;
  std::vector<std::int64_t> offsets{0};
  Workspace ws;
  Data(Index users, Index l, Index rows) : x(users * l, width), y(users * rows, width) {
    Random random(1);
    for (Index i = 0; i < x.rows() * width; ++i) x.data()[i] = static_cast<float>(random.normal());
    for (Index b = 1; b <= users; ++b) offsets.push_back(b * l);
  }
  JaggedView<const float> rows() const { return {x.view(), offsets}; }
};

/// `make(random)` gives the layer, `run(layer, data)` serves it.
template <class Make, class Run>
void add(const std::string& what, Index users, Index l, Index m, double flops, Make make, Run run) {
  register_case<float>(
      "attention/pooling/" + what + "/f32/B:" + std::to_string(users) + "/L:" + std::to_string(l) + "/m:" + std::to_string(m),
      [=] {
        Random random(1);
        const auto data = std::make_shared<Data>(users, l, what == "isab" ? l : m);
        const auto layer = std::make_shared<decltype(make(random))>(make(random));
        Case<float> c;
        c.flops = flops;
        c.kernel = [=](Index) { run(*layer, *data); };
        c.peers.push_back(python_peer("torch", "pooling",
                                      "{\"kind\": \"" + what + "\", \"batch\": " + std::to_string(users) +
                                          ", \"length\": " + std::to_string(l) + ", \"queries\": " + std::to_string(m) +
                                          ", \"width\": 64, \"heads\": 4}"));
        return c;
      },
      60);
}

}  // namespace

int main(int argc, char** argv) {
  const double d = width;
  const auto plain = [](auto& layer, Data& data) { layer.forward(data.rows(), data.y, data.ws); };
  for (const auto& [users, l, m] : {std::array<Index, 3>{64, 200, 1}, {64, 200, 8}, {1, 2000, 1}}) {
    const double n = static_cast<double>(users * l), q = static_cast<double>(users * m), per = static_cast<double>(m);
    add(
        "pma", users, l, m, 4 * n * d * d + 4 * n * per * d + 2 * q * d * d,
        [m = m](Random& r) { return Pma<float>(width, width, m, {.heads = 4}, r); }, plain);
  }
  {
    const double n = 64 * 200, q = 64 * 8;
    add(
        "isab", 64, 200, 8, 8 * n * d * d + 8 * n * 8 * d + 6 * q * d * d,
        [](Random& r) { return Isab<float>(width, width, 8, {.heads = 4}, r); }, plain);
  }
  {
    const double n = 64 * 108, q = 64 * 8;
    add(
        "resampler", 64, 100, 8, 4 * n * d * d + 4 * n * 8 * d + q * (4 + 16) * d * d,
        [](Random& r) { return QueryResampler<float>(width, {.queries = 8, .heads = 4}, r); },
        [](auto& layer, Data& data) { layer.forward(data.rows(), {}, data.y, data.ws); });
  }
  {
    const double n = 1024 * 6, q = 1024;
    add(
        "fq_former", 1024, 5, 1, 4 * n * d * d + 4 * n * d + q * 6 * d * d,
        [](Random& r) { return FqFormer<float>(width, {.queries = 1, .heads = 4}, r); }, plain);
  }
  {
    const double n = 64 * 200;
    add(
        "additive", 64, 200, 1, 2 * n * (d * d + 2 * d), [](Random& r) { return AdditivePool<float>(width, width, r); },
        [](auto& layer, Data& data) { layer.forward(data.rows(), {}, data.y, data.ws); });
  }
  return run_registered(argc, argv);
}
