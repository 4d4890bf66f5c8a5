/// Learning and sampling determinantal point processes: N items of D features in float, k chosen.
///
///     taskset -c 1 build/bench/bench/recops_bench_diversity_dpp_learning
///
/// Cases: `dpp_nll` and `kdpp_nll` are value and gradient of features and quality; `sample` the spectrum and one sample of k; `draw` a
/// further sample. All algebra is in double, so of_peak counts double multiply-adds. Peers: `torch` (autograd through the dual form in
/// double, Cholesky of D x D), `eigen` (the same formulas by hand: rank update, LLT, two triangular solves; for samples its
/// eigensolver and the same draw).
#include <recops/core/random.hpp>
#include <recops/diversity/dpp_sample.hpp>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>
#include <recops/core/eigen.hpp>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

struct Data {
  Index n, d, k;
  Matrix<float> f, df;
  Vector<float> q, dq;
  std::vector<std::int32_t> chosen;
  Vector<std::int32_t> picks;
  DppSampler<float> sampler{};
  RandomRow at{.seed = 1};
  Workspace ws{};

  Data(Index items, Index cols, Index count) : n(items), d(cols), k(count), f(n, d), df(n, d, 0), q(n), dq(n, 0), picks(k) {
    Random random(1);
    for (Index i = 0; i < n * d; ++i) f.data()[i] = static_cast<float>(random.normal());
    for (float& v : q) v = static_cast<float>(std::exp(0.5 * random.normal()) / std::sqrt(static_cast<double>(d)));
    for (Index t = 0; t < k; ++t) chosen.push_back(static_cast<std::int32_t>(t * (n / k)));
    sampler.prepare(input(), ws);
  }
  DppItems<float> input() const { return {.features = f, .quality = q}; }
  void nll() { dpp_nll<float>(input(), chosen, {}, {.features = df, .quality = dq}, ws); }
  void fixed() { kdpp_nll<float>(input(), chosen, {.features = df, .quality = dq}, ws); }
  void draw() {
    ++at.row;
    sampler.sample(at, picks, ws);
  }
  void sample() {
    sampler.prepare(input(), ws);
    draw();
  }

#ifdef WITH_EIGEN
  using Dense = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Dense v, a, b, y, g, gy;
  double eigen_value = 0;
  void scaled() {
    v = as_eigen(f).cast<double>();
    v.array().colwise() *= as_eigen(q).cast<double>().array();
  }
  void eigen_nll() {
    scaled();
    a.setZero(d, d);
    a.selfadjointView<Eigen::Lower>().rankUpdate(v.transpose());
    a.diagonal().array() += 1.001;
    const Eigen::LLT<Eigen::Ref<Dense>> whole(a);
    y.resize(k, d);
    for (Index t = 0; t < k; ++t) y.row(t) = v.row(chosen[static_cast<std::size_t>(t)]);
    b.noalias() = y * y.transpose();
    b.diagonal().array() += 1e-3;
    const Eigen::LLT<Eigen::Ref<Dense>> part(b);
    eigen_value = 2 * (a.diagonal().array().log().sum() - b.diagonal().array().log().sum());
    g = 2 * v;
    whole.matrixL().transpose().solveInPlace<Eigen::OnTheRight>(g);
    whole.matrixL().solveInPlace<Eigen::OnTheRight>(g);
    gy = y;
    part.solveInPlace(gy);
    for (Index t = 0; t < k; ++t) g.row(chosen[static_cast<std::size_t>(t)]) -= 2 * gy.row(t);
    as_eigen(dq) += g.cwiseProduct(as_eigen(f).cast<double>()).rowwise().sum().cast<float>();
    g.array().colwise() *= as_eigen(q).cast<double>().array();
    as_eigen(df) += g.cast<float>();
  }
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver{};
  Eigen::MatrixXf bm, basis;
  Eigen::VectorXf p, c;
  void eigen_sample() {
    scaled();
    a.setZero(d, d);
    a.selfadjointView<Eigen::Lower>().rankUpdate(v.transpose());
    solver.compute(a);
    ++at.row;
    Random random(1, at.row);
    const auto& lambda = solver.eigenvalues();
    Eigen::MatrixXd e = Eigen::MatrixXd::Zero(k + 1, d + 1);
    e.row(0).setOnes();
    const double mean = lambda.mean();
    for (Index l = 1; l <= k; ++l)
      for (Index i = 1; i <= d; ++i) e(l, i) = e(l, i - 1) + lambda[i - 1] / mean * e(l - 1, i - 1);
    Eigen::MatrixXf u(d, k);
    Index left = k;
    for (Index i = d; i > 0 && left > 0; --i)
      if (random.uniform() * e(left, i) < lambda[i - 1] / mean * e(left - 1, i - 1))
        u.col(--left) = (solver.eigenvectors().col(i - 1) / std::sqrt(lambda[i - 1])).cast<float>();
    bm.noalias() = as_eigen(q).asDiagonal() * (as_eigen(f) * u);
    p = bm.rowwise().squaredNorm();
    basis.resize(k, k);
    for (Index t = 0; t < k; ++t) {
      const double total = static_cast<double>(p.sum()), level = random.uniform() * total;
      double sum = 0;
      Index i = 0;
      while (i + 1 < n && (sum += static_cast<double>(p[i])) <= level) ++i;
      picks[t] = static_cast<std::int32_t>(i);
      Eigen::VectorXf own = bm.row(i).transpose();
      for (int twice = 0; twice < 2; ++twice) own -= basis.leftCols(t) * (basis.leftCols(t).transpose() * own);
      own.normalize();
      basis.col(t) = own;
      c.noalias() = bm * own;
      p = (p - c.cwiseAbs2()).cwiseMax(0.0f);
      p[i] = 0;
    }
  }
#endif
};

void add(const std::string& what, Index n, Index d, Index k) {
  const std::string sizes = "/N:" + std::to_string(n) + "/D:" + std::to_string(d) + "/k:" + std::to_string(k);
  register_case<double>("diversity/dpp_learning/" + what + "/f32" + sizes, [=] {
    const auto data = std::make_shared<Data>(n, d, k);
    const auto rows = static_cast<double>(n), cols = static_cast<double>(d), chosen = static_cast<double>(k);
    Case<double> c;
    if (what == "dpp_nll") {
      c.kernel = [data] { data->nll(); };
      c.flops = 4 * rows * cols * cols + 4 * cols * cols * cols / 3 + 4 * chosen * chosen * cols;
      const std::string arguments =
          R"({"n": )" + std::to_string(n) + R"(, "d": )" + std::to_string(d) + R"(, "k": )" + std::to_string(k) + "}";
      for (const char* torch : {"torch", "torch_new"}) c.peers.push_back(python_peer(torch, "dpp_nll", arguments));
    } else if (what == "kdpp_nll") {
      c.kernel = [data] { data->fixed(); };
      c.flops = 4 * rows * cols * cols;
    } else if (what == "sample") {
      c.kernel = [data] { data->sample(); };
      c.flops = 2 * rows * cols * cols;
    } else {
      c.kernel = [data] { data->draw(); };
      c.bytes = rows * chosen * chosen * sizeof(float);  // the span of all items, once per pick
    }
#ifdef WITH_EIGEN
    if (what == "dpp_nll") c.peers.push_back({"eigen", [data] { data->eigen_nll(); }});
    if (what == "sample") c.peers.push_back({"eigen", [data] { data->eigen_sample(); }});
#endif
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {200, 1000}) {
    for (const char* what : {"dpp_nll", "kdpp_nll", "sample", "draw"}) add(what, n, 64, 10);
  }
  return recops_bench::run_registered(argc, argv);
}
