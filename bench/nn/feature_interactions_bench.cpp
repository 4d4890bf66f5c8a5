/// Feature interactions, serving: factorisation machine and SENet over 26 fields of 16, the DCN-v2 mixture (1024 numbers, 4 experts of
/// rank 64, one layer).
///
///     taskset -c 1 build/bench/bench/recops_bench_nn_feature_interactions
///
/// Peers: `torch` in its best form, eager or traced and frozen; `eigen` by hand.
#include <recops/nn/cross_mixture.hpp>
#include <recops/nn/fm.hpp>
#include <recops/nn/senet.hpp>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <recops/core/eigen.hpp>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index fields = 26, k = 16;

Matrix<float> random_of(Index rows, Index cols, Random& random) {
  Matrix<float> m(rows, cols);
  for (float& v : leaf_values(m)) v = static_cast<float>(random.uniform(-1.7, 1.7));
  return m;
}
std::string sizes(Index batch) { return "{\"batch\": " + std::to_string(batch) + ", \"fields\": 26, \"k\": 16}"; }

void add_fm(Index batch) {
  register_case<float>("nn/fm/f32/B:" + std::to_string(batch), [=] {
    struct Data {
      Matrix<float> e, y;
      Workspace ws;
    };
    const auto data = std::make_shared<Data>();
    Random random(1);
    data->e = random_of(batch, fields * k, random);
    data->y = Matrix<float>(batch, 1);
    Case<float> c;
    c.bytes = static_cast<double>(batch * fields * k) * sizeof(float);
    c.data = [data](Index) { return static_cast<const void*>(data->e.data()); };
    c.kernel = [data] { fm<float>(data->e, {.fields = fields}, data->y, data->ws); };
#ifdef WITH_EIGEN
    c.peers.push_back({"eigen", [data] {
                         for (Index b = 0; b < data->e.rows(); ++b) {
                           const Eigen::Map<const RowMajor<float>> e(data->e.row(b), fields, k);
                           const Eigen::RowVectorXf s = e.colwise().sum();
                           data->y(b, 0) = 0.5f * (s.squaredNorm() - e.squaredNorm());
                         }
                         benchmark::DoNotOptimize(data->y.data());
                       }});
#endif
    c.peers.push_back(python_peer("torch", "fm", sizes(batch)));
    return c;
  });
}

void add_senet(Index batch) {
  register_case<float>("nn/senet/f32/B:" + std::to_string(batch), [=] {
    struct Data {
      Matrix<float> e, y;
      Senet<float> layer;
      FrozenSenet<float> served;
      Workspace ws;
#ifdef WITH_EIGEN
      RowMajor<float> z, h, a;
#endif
    };
    const auto data = std::make_shared<Data>();
    Random random(1);
    data->e = random_of(batch, fields * k, random);
    data->y = data->e;
    data->layer = Senet<float>(fields, 3, Activation::sigmoid, random);
    data->served = freeze(data->layer);
    Case<float> c;
    c.bytes = 2.0 * static_cast<double>(batch * fields * k) * sizeof(float);
    c.kernel = [data] { data->served.forward(data->e, data->y, data->ws); };
#ifdef WITH_EIGEN
    data->z.resize(batch, fields);
    data->h.resize(batch, fields / 3);
    data->a.resize(batch, fields);
    c.peers.push_back(
        {"eigen", [data] {
           for (Index b = 0; b < data->e.rows(); ++b)
             data->z.row(b) = Eigen::Map<const RowMajor<float>>(data->e.row(b), fields, k).rowwise().mean().transpose();
           data->h.noalias() = data->z * as_eigen(data->layer.squeeze).transpose();
           data->h = data->h.cwiseMax(0.0f);
           data->a.noalias() = data->h * as_eigen(data->layer.excite).transpose();
           data->a = 1.0f / (1.0f + (-data->a.array()).exp());
           for (Index b = 0; b < data->e.rows(); ++b)
             Eigen::Map<RowMajor<float>>(data->y.row(b), fields, k) =
                 data->a.row(b).transpose().asDiagonal() * Eigen::Map<const RowMajor<float>>(data->e.row(b), fields, k);
           benchmark::DoNotOptimize(data->y.data());
         }});
#endif
    c.peers.push_back(python_peer("torch", "senet", sizes(batch)));
    return c;
  });
}

void add_mixture(Index batch) {
  static constexpr Index d = 1024, experts = 4, r = 64;
  register_case<float>("nn/cross_mixture/f32/B:" + std::to_string(batch), [=] {
    struct Data {
      Matrix<float> x, y;
      CrossMixture<float> layer;
      std::vector<FrozenCrossMixture<float>> served;
      Workspace ws;
#ifdef WITH_EIGEN
      struct Weights {
        Eigen::MatrixXf v, u, gate;
        std::vector<Eigen::MatrixXf> c;
      };
      std::vector<Weights> weights;  // in turns, as ours
      RowMajor<float> a, m, g, w;
#endif
    };
    const auto data = std::make_shared<Data>();
    Random random(1);
    data->x = random_of(batch, d, random);
    data->y = data->x;
    data->layer = CrossMixture<float>(d, 1, experts, r, random);
    Case<float> c;
    const double weights = static_cast<double>(2 * d * experts * r + experts * r * r + experts * d);
    c.flops = 2 * static_cast<double>(batch) * weights;
    c.working_set = weights * sizeof(float);
    c.copies = copies_for(c.working_set);
    if (batch == 1) c.bytes = c.working_set;
    data->served.assign(static_cast<std::size_t>(c.copies), freeze(data->layer));
    c.kernel = [data](Index copy) { data->served[static_cast<std::size_t>(copy)].forward(data->x, data->y, data->ws); };
#ifdef WITH_EIGEN
    const auto& l = data->layer.layers[0];
    typename Data::Weights turned{
        as_eigen(l.down).transpose(), Eigen::MatrixXf(experts * r, d), as_eigen(l.gate).transpose(), {}};
    for (Index i = 0; i < experts; ++i) {
      turned.u.middleRows(i * r, r) = as_eigen(l.up).middleRows(i * d, d).transpose();
      turned.c.push_back(as_eigen(l.middle).middleRows(i * r, r).transpose());
    }
    data->weights.assign(static_cast<std::size_t>(c.copies), turned);
    data->a.resize(batch, experts * r);
    data->m.resize(batch, experts * r);
    data->g.resize(batch, experts);
    data->w.resize(batch, d);
    c.peers.push_back({"eigen", [data](Index copy) {
                         Data& s = *data;
                         const auto& own = s.weights[static_cast<std::size_t>(copy)];
                         s.a.noalias() = as_eigen(s.x) * own.v;
                         s.a = s.a.array().tanh();
                         s.g.noalias() = as_eigen(s.x) * own.gate;
                         s.g.colwise() -= s.g.rowwise().maxCoeff().eval();
                         s.g = s.g.array().exp();
                         s.g.array().colwise() /= s.g.rowwise().sum().array().eval();
                         for (Index i = 0; i < experts; ++i) {
                           s.m.middleCols(i * r, r).noalias() = s.a.middleCols(i * r, r) * own.c[static_cast<std::size_t>(i)];
                           s.m.middleCols(i * r, r) = s.m.middleCols(i * r, r).array().tanh().colwise() * s.g.col(i).array();
                         }
                         s.w.noalias() = s.m * own.u;
                         as_eigen(s.y) =
                             as_eigen(s.x).array() * (s.w.rowwise() + as_eigen(s.layer.layers[0].bias).transpose()).array() +
                             as_eigen(s.x).array();
                         benchmark::DoNotOptimize(s.y.data());
                       }});
#endif
    c.peers.push_back(python_peer("torch", "cross_mixture",
                                  "{\"batch\": " + std::to_string(batch) + ", \"d\": 1024, \"experts\": 4, \"r\": 64}"));
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index batch : {1, 64, 512}) add_fm(batch);
  for (const Index batch : {1, 64, 512}) add_senet(batch);
  for (const Index batch : {1, 64, 512}) add_mixture(batch);
  return recops_bench::run_registered(argc, argv);
}
