/// Random numbers: uniforms, normals, dropout, draws and orders, against the C++ standard library, numpy and PyTorch.
/// 4096 numbers are written to a buffer that stays in the first cache level; `set:` names a narrower instruction set.
#include <numeric>
#include <random>
#include <recops/simd/keep_mask.hpp>
#include <recops/simd/normal.hpp>
#include <recops/simd/random_index.hpp>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

template <class T>
std::string type() {
  return sizeof(T) == 4 ? "f32" : "f64";
}

template <class T>
std::string arguments(Index n) {
  return R"({"n": )" + std::to_string(n) + R"(, "type": ")" + type<T>() + "\"}";
}

template <class T>
Case<T> filling(Index n, std::shared_ptr<Vector<T>>& out) {
  out = std::make_shared<Vector<T>>(n);
  Case<T> c;
  c.elements = static_cast<double>(n);
  return c;
}

// A distribution of the standard library on the Mersenne Twister.
template <class T, class Distribution, class Engine>
Peer standard(const char* name, Index n, Distribution distribution) {
  const auto out = std::make_shared<Vector<T>>(n);
  return {name, [out, distribution, engine = Engine(1)]() mutable {
            for (T& x : *out) x = distribution(engine);
            benchmark::DoNotOptimize(out->data());
          }};
}

template <class T, class A>
void add_normal(const std::string& set, Index n) {
  register_case<T>("simd/normal/" + type<T>() + "/n:" + std::to_string(n) + set, [=] {
    std::shared_ptr<Vector<T>> out;
    Case<T> c = filling<T>(n, out);
    c.template use<A>();
    c.kernel = [=, at = RandomRow{.seed = 1}]() mutable {
      ++at.row;
      simd::fill_normal<T, A>(at, out->data(), n);
    };
    if (set.empty()) {
      c.peers.push_back(standard<T, std::normal_distribution<T>, std::mt19937>("std", n, std::normal_distribution<T>()));
      c.peers.push_back(
          standard<T, std::normal_distribution<T>, std::minstd_rand>("std_minstd", n, std::normal_distribution<T>()));
      c.peers.push_back(python_peer("torch", "normal", arguments<T>(n)));
      c.peers.push_back(python_peer("numpy", "normal", arguments<T>(n)));
    }
    return c;
  });
}

// Short rows of a batch, one id each: what a sampler's step asks for.
template <class T>
void add_normal_rows(Index rows, Index cols) {
  register_case<T>("simd/normal_rows/" + type<T>() + "/rows:" + std::to_string(rows) + "/cols:" + std::to_string(cols), [=] {
    std::shared_ptr<Vector<T>> out;
    Case<T> c = filling<T>(rows * cols, out);
    const auto ids = std::make_shared<std::vector<std::int64_t>>(static_cast<std::size_t>(rows));
    std::iota(ids->begin(), ids->end(), 1000);
    c.kernel = [=, at = RandomRow{.seed = 1}]() mutable {
      ++at.step;
      simd::fill_normal<T>(at, *ids, MatrixView<T>(out->data(), rows, cols));
    };
    c.peers.push_back(python_peer("torch", "normal", arguments<T>(rows * cols)));
    return c;
  });
}

template <class T, class A>
void add_uniform(const std::string& set, Index n) {
  register_case<T>("simd/uniform/" + type<T>() + "/n:" + std::to_string(n) + set, [=] {
    std::shared_ptr<Vector<T>> out;
    Case<T> c = filling<T>(n, out);
    c.template use<A>();
    c.kernel = [=, at = RandomRow{.seed = 1}]() mutable {
      ++at.row;
      simd::fill_uniform<T, A>(at, out->data(), n);
    };
    if (set.empty()) {
      using Engine = std::conditional_t<sizeof(T) == 4, std::mt19937, std::mt19937_64>;
      c.peers.push_back(standard<T, std::uniform_real_distribution<T>, Engine>("std", n, std::uniform_real_distribution<T>()));
      c.peers.push_back(python_peer("torch", "uniform", arguments<T>(n)));
    }
    return c;
  });
}

void add_dropout(Index n) {
  register_case<float>("simd/dropout/f32/n:" + std::to_string(n), [=] {
    std::shared_ptr<Vector<float>> out;
    Case<float> c = filling<float>(n, out);
    const auto x = std::make_shared<Vector<float>>(n, 1.0f);
    c.kernel = [=, at = RandomRow{.seed = 1, .purpose = RandomPurpose::dropout}]() mutable {
      ++at.row;
      simd::dropout<float>(at, 0.9, x->data(), out->data(), n);
    };
    const auto theirs = std::make_shared<Vector<float>>(n);
    c.peers.push_back({"std", [=, engine = std::mt19937(1)]() mutable {
                         const auto threshold = static_cast<std::uint32_t>(0.9 * 0x1p32);
                         for (Index i = 0; i < n; ++i) (*theirs)[i] = engine() < threshold ? (*x)[i] * (1 / 0.9f) : 0.0f;
                         benchmark::DoNotOptimize(theirs->data());
                       }});
    return c;
  });
  register_case<float>("simd/keep_mask/u8/n:" + std::to_string(n), [=] {
    const auto out = std::make_shared<std::vector<std::uint8_t>>(static_cast<std::size_t>(n));
    Case<float> c;
    c.elements = static_cast<double>(n);
    c.kernel = [=, at = RandomRow{.seed = 1, .purpose = RandomPurpose::dropout}]() mutable {
      ++at.row;
      simd::fill_keep(at, 0.9, out->data(), n);
    };
    c.peers.push_back({"std", [out = std::vector<std::uint8_t>(*out), engine = std::mt19937(1)]() mutable {
                         const auto threshold = static_cast<std::uint32_t>(0.9 * 0x1p32);
                         for (std::uint8_t& x : out) x = engine() < threshold;
                         benchmark::DoNotOptimize(out.data());
                       }});
    return c;
  });
}

void add_indices(Index n) {
  register_case<float>("simd/below/i32/n:" + std::to_string(n), [=] {
    const auto out = std::make_shared<std::vector<std::int32_t>>(static_cast<std::size_t>(n));
    Case<float> c;
    c.elements = static_cast<double>(n);
    c.kernel = [=, at = RandomRow{.seed = 1, .purpose = RandomPurpose::negatives}]() mutable {
      ++at.row;
      simd::fill_below(at, 1000003, out->data(), n);
    };
    c.peers.push_back(standard<std::int32_t, std::uniform_int_distribution<std::int32_t>, std::mt19937>(
        "std", n, std::uniform_int_distribution<std::int32_t>(0, 1000002)));
    return c;
  });
}

void add_permutation(Index n) {
  register_case<float>("simd/permutation/i32/n:" + std::to_string(n), [=] {
    const auto out = std::make_shared<std::vector<std::int32_t>>(static_cast<std::size_t>(n));
    Case<float> c;
    c.elements = static_cast<double>(n);
    c.kernel = [=, at = RandomRow{.seed = 1, .purpose = RandomPurpose::shuffle}]() mutable {
      ++at.row;
      simd::fill_permutation(at, out->data(), n);
    };
    c.peers.push_back({"std", [=, engine = std::mt19937(1), theirs = std::vector<std::int32_t>(*out)]() mutable {
                         std::iota(theirs.begin(), theirs.end(), 0);
                         std::shuffle(theirs.begin(), theirs.end(), engine);
                         benchmark::DoNotOptimize(theirs.data());
                       }});
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  constexpr Index n = 4096;
  add_normal<float, simd::DefaultArch>("", n);
  add_normal<double, simd::DefaultArch>("", n);
  add_normal_rows<float>(64, 64);
  add_normal_rows<float>(512, 8);
  add_uniform<float, simd::DefaultArch>("", n);
  add_uniform<double, simd::DefaultArch>("", n);
#if defined(__AVX512F__) && defined(__FMA__)
  add_normal<float, xsimd::fma3<xsimd::avx2>>("/set:avx2", n);
  add_normal<double, xsimd::fma3<xsimd::avx2>>("/set:avx2", n);
  add_normal<float, xsimd::sse2>("/set:sse2", n);
  add_uniform<float, xsimd::fma3<xsimd::avx2>>("/set:avx2", n);
#endif
  add_dropout(n);
  add_indices(n);
  for (const Index size : {4096, 1000000}) add_permutation(size);
  return run_registered(argc, argv);
}
